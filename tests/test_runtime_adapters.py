"""Adapters through the runtime: chosen turn by turn, in one batch, and never on another's KV."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anyio
import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.model.make import make_model
from agentrt.errors import ConfigError, InvalidRequest, ModelError
from tests.engine.adapters import merge, write_adapter

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
PROMPT = list(range(5, 25))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    write_adapter(directory.parent / "one", directory, 1)
    write_adapter(directory.parent / "two", directory, 2)
    return directory


@pytest.fixture
def config(model: Path) -> RuntimeConfig:
    return RuntimeConfig(
        model=str(model),
        adapters=(f"one={model.parent / 'one'}", f"tiny:two={model.parent / 'two'}"),
        pool_tokens=512,
        page_size=4,
        sandbox=None,
        threads=1,
        measure=False,
    )


async def answer(runtime: Runtime, name: str, adapter: str | None) -> tuple[list[int], int]:
    async with runtime.program(name) as program:
        done = await program.complete(PROMPT, GREEDY, adapter=adapter)
    return list(done.tokens), done.stats.cached_tokens


async def merged_answer(config: RuntimeConfig, model: Path, name: str, place: Path) -> list[int]:
    whole = merge(model, model.parent / name, place / name, 2.0)
    async with Runtime.open(dataclasses.replace(config, model=str(whole), adapters=())) as runtime:
        return (await answer(runtime, "merged", None))[0]


async def test_each_adapter_answers_like_its_merged_model_and_finds_its_own_kv_only(
    config: RuntimeConfig, model: Path, tmp_path: Path
) -> None:
    wanted = {name: await merged_answer(config, model, name, tmp_path) for name in ("one", "two")}
    async with Runtime.open(config) as runtime:
        plain, cached = await answer(runtime, "p", None)
        assert cached == 0
        assert len({tuple(plain), *map(tuple, wanted.values())}) == 3
        for adapter in ("one", "two"):  # the same prompt is cached, for another adapter
            assert await answer(runtime, "p", adapter) == (wanted[adapter], 0)
        for adapter in ("one", "two", None):
            again, cached = await answer(runtime, "p", adapter)
            assert (again, cached) == (plain if adapter is None else wanted[adapter], 16)


@pytest.mark.parametrize("steps", ["off", "on"])
async def test_one_batch_of_all_of_them(config: RuntimeConfig, steps: str) -> None:
    # Recorded steps and steps launched early know no adapters: turns with one go around them.
    config = dataclasses.replace(config, attention="torch", graphs=steps, overlap=steps)
    kinds = [None, "one", "two", "one", None]
    async with Runtime.open(config) as runtime:
        alone = {kind: (await answer(runtime, "p", kind))[0] for kind in set(kinds)}
    found: dict[int, list[int]] = {}
    async with Runtime.open(config) as runtime:

        async def one(place: int) -> None:
            found[place] = (await answer(runtime, f"p{place}", kinds[place]))[0]

        async with anyio.create_task_group() as tasks:
            for place in range(len(kinds)):
                tasks.start_soon(one, place)
    assert [found[place] for place in range(len(kinds))] == [alone[kind] for kind in kinds]


async def test_a_prompt_computed_ahead_is_the_adapters_own(config: RuntimeConfig) -> None:
    messages = [{"role": "user", "content": "go"}, {"role": "tool", "content": ""}]
    async with Runtime.open(config) as runtime:
        for opened_for, asked_for in (("one", "one"), ("one", "two"), (None, "one")):
            async with runtime.program("ahead") as program:
                opened = program.open_chat(messages, adapter=opened_for)
                opened.write("done and done and done and done")
                whole = [
                    messages[0],
                    {"role": "tool", "content": "done and done and done and done"},
                ]
                first = await program.chat(whole, sampling=GREEDY, adapter=asked_for, opened=opened)
            async with runtime.program("later") as program:
                second = await program.chat(whole, sampling=GREEDY, adapter=asked_for)
            assert first.tokens == second.tokens


async def test_adapters_come_and_go(config: RuntimeConfig, model: Path) -> None:
    async with Runtime.open(dataclasses.replace(config, adapters=())) as runtime:
        with pytest.raises(InvalidRequest, match="no adapter 'one'"):
            await answer(runtime, "p", "one")
        await runtime.load_adapter("one", model.parent / "one")
        first = await answer(runtime, "p", "one")
        assert runtime.adapters == ["one"]
        with pytest.raises(ConfigError, match="'one' already"):
            await runtime.load_adapter("one", model.parent / "two")
        runtime.drop_adapter("one")
        with pytest.raises(InvalidRequest, match="no adapter 'one'"):
            await answer(runtime, "p", "one")
        await runtime.load_adapter("one", model.parent / "two")
        second = await answer(runtime, "p", "one")
    assert first[0] != second[0]
    assert second[1] == 0


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (("one",), "names no adapter"),
        (("other:one=x",), "no model 'other' to adapt. Name one of tiny"),
        (("tiny=x",), "does not exist"),
    ],
)
async def test_what_is_wrong_is_found_before_weights_are_read(
    config: RuntimeConfig, adapters: tuple[str, ...], said: str
) -> None:
    read: list[object] = []
    with pytest.raises((ConfigError, ModelError), match=said):
        async with Runtime.open(
            dataclasses.replace(config, adapters=adapters), on_load=lambda *now: read.append(now)
        ):
            pass
    assert not read


async def test_an_adapter_is_not_named_as_its_model(config: RuntimeConfig, model: Path) -> None:
    taken = dataclasses.replace(config, adapters=(f"tiny={model.parent / 'one'}",))
    with pytest.raises(ConfigError, match="'tiny' is the name of an adapter and of something"):
        async with Runtime.open(taken):
            pass
