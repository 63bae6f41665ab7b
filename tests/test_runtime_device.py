"""The settings of steps on a device, through the runtime on the CPU."""

from __future__ import annotations

import dataclasses

import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.model.make import make_model
from agentrt.errors import ConfigError

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=20, seed=5, ignore_eos=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory),
        pool_tokens=512,
        page_size=4,
        sandbox=None,
        threads=1,
        attention="torch",
    )


async def answers(config: RuntimeConfig) -> tuple[list[tuple[int, ...]], int]:
    steps = []
    async with Runtime.open(config, on_step=lambda *step: steps.append(step)) as runtime:
        tokens = []
        for sampling in (GREEDY, SEEDED):
            async with runtime.program() as program:
                tokens.append((await program.complete(range(5, 25), sampling)).tokens)
        overlapped = runtime.statistics().overlapped_steps
    assert all(begin <= end for _, begin, end in steps)
    ends = [end for _, _, end in steps]
    assert all(begin >= end for (_, begin, _), end in zip(steps[1:], ends, strict=False))
    return tokens, overlapped


async def test_all_of_them_change_no_token(config: RuntimeConfig) -> None:
    plain, none = await answers(config)
    on = dataclasses.replace(config, graphs="on", overlap="on", preempt="on", threads=None)
    device, overlapped = await answers(on)
    assert device == plain
    assert none == 0
    assert overlapped > 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"graphs": "maybe"}, "no graphs setting 'maybe'"),
        ({"preempt": "yes"}, "no preempt setting 'yes'"),
    ],
)
async def test_what_is_no_setting_is_refused(config, settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        async with Runtime.open(dataclasses.replace(config, **settings)):
            pass


@pytest.mark.requires_native
async def test_attention_without_steps_over_buffers_is_named(config: RuntimeConfig) -> None:
    native = dataclasses.replace(config, attention="native", overlap="on")
    with pytest.raises(ConfigError, match="overlap is on, but NativePagedAttention") as caught:
        async with Runtime.open(native):
            pass
    assert "attention torch" in str(caught.value)
