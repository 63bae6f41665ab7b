"""Host memory and files behind the page pool: the same answers, with less computed. Real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.model.make import make_model
from agentrt.errors import ConfigError

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
PROGRAMS = 5


@pytest.fixture(params=["asyncio"])
def anyio_backend(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory: Path = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory),
        policy="fcfs",
        pool_tokens=160,
        page_size=4,
        sandbox=None,
        threads=1,
    )


async def conversations(config, rounds=3):
    """Let programs whose contexts do not fit the pool together take turns; return all answers."""
    said = []
    async with Runtime.open(config) as runtime:
        programs = [runtime.program(f"p{number}") for number in range(PROGRAMS)]
        prompts = [list(range(10 * number + 5, 10 * number + 55)) for number in range(PROGRAMS)]
        for turn in range(rounds):
            for program, prompt in zip(programs, prompts, strict=True):
                answer = await program.complete(prompt, GREEDY)
                said.append(answer.tokens)
                prompt += [*answer.tokens, turn + 3, turn + 4]
        figures = runtime.statistics()
        for program in programs:
            await program.end()
    return said, figures


@pytest.fixture(scope="module")
def plain(config):
    import anyio

    return anyio.run(conversations, config)


@pytest.mark.parametrize("policy", ["fcfs", "agentrt", "agentrt=no-prefetch", "continuum"])
async def test_a_host_tier_changes_no_answer_and_saves_work(config, plain, policy):
    # Loading is measured as quicker than computing, or the policy would not.
    tiered = replace(config, policy=policy, host_kv_bytes=4 << 20, measure=False)
    said, figures = await conversations(tiered)
    assert said == plain[0]
    assert figures.tier.stored_pages > 0
    assert figures.tier.failed == 0
    if policy == "fcfs":
        assert figures.tier.loaded_pages > 0
        assert figures.scheduler.cached_tokens > plain[1].scheduler.cached_tokens
        assert figures.tier.loaded_bytes == figures.tier.loaded_pages * (
            figures.tier.stored_bytes // figures.tier.stored_pages
        )


async def test_a_restart_finds_what_files_hold(config, plain, tmp_path):
    kept = replace(
        config, host_kv_bytes=1 << 20, kv_files=str(tmp_path), kv_files_bytes=8 << 20, measure=False
    )
    first, _ = await conversations(kept)
    files = sorted(tmp_path.rglob("*.kv"))
    assert files
    second, figures = await conversations(kept)
    assert first == second == plain[0]
    assert figures.scheduler.fetched_tokens > 0
    assert figures.tier.files.read > 0
    assert figures.tier.files.corrupt == 0
    # A first turn of the second run finds the whole of its prompt but the page that it ends in.
    assert figures.scheduler.cached_tokens > 50 * PROGRAMS


async def test_damaged_files_cost_work_and_nothing_else(config, plain, tmp_path):
    kept = replace(config, host_kv_bytes=1 << 20, kv_files=str(tmp_path), measure=False)
    await conversations(kept, rounds=1)
    files = sorted(tmp_path.rglob("*.kv"))
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    said, figures = await conversations(kept)
    assert said == plain[0]
    assert figures.tier.files.corrupt > 0


async def test_another_models_files_are_not_taken(config, tmp_path, tmp_path_factory):
    kept = replace(config, host_kv_bytes=1 << 20, kv_files=str(tmp_path), measure=False)
    await conversations(kept, rounds=1)
    other = tmp_path_factory.mktemp("model") / "tiny"
    make_model(other, "qwen3", "tiny", 1, dtype="float32")
    plainly, _ = await conversations(replace(config, model=str(other)), rounds=1)
    said, figures = await conversations(replace(kept, model=str(other)), rounds=1)
    assert said == plainly
    assert figures.scheduler.fetched_tokens == 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"host_kv_bytes": 100}, "a page takes"),
        ({"host_kv_bytes": 1 << 60}, "are free"),
        ({"kv_files": "/tmp/none"}, "no host tier"),
        ({"host_kv_bytes": 1 << 20, "kv_files": "/proc/none"}, "cannot be kept"),
        ({"host_kv_bytes": 1 << 20, "kv_files": "KV", "kv_files_bytes": 10}, "hold no page"),
    ],
)
async def test_settings_that_cannot_work_are_refused(config, fields, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=match):
        async with Runtime.open(replace(config, measure=False, **fields)):
            pass
