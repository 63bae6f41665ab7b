"""Models that take turns in device memory: nobody is stuck, nobody is starved, nothing is lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from agentrt import Runtime, RuntimeConfig, SamplingParams, assembly
from agentrt.engine.memory import DeviceBytes, MemoryPlan, ModelPlan
from agentrt.engine.model.make import make_model
from agentrt.errors import InvalidRequest, ModelError
from agentrt.models import ModelHost
from agentrt.served import Assembled, ServedModel

pytestmark = pytest.mark.anyio


class FakeEngine:
    """Runs turns until they are ended; knows how many bytes all fakes hold together."""

    def __init__(self, world: World, name: str, size: int) -> None:
        self.world, self.name, self.size = world, name, size
        self.turns: list[anyio.Event] = []
        self.closed = False
        world.hold(self.size)

    def start(self) -> None:
        self.world.log.append(f"start {self.name}")

    def statistics(self) -> Any:
        return SimpleNamespace(turns=len(self.turns), state="running")

    async def hand_in(self, request: str, opened: str | None) -> anyio.Event:
        assert not self.closed
        await checkpoint()
        turn = anyio.Event()
        self.turns.append(turn)
        return turn

    async def aclose(self, drain: float = 0.0) -> None:
        self.closed = True
        for turn in self.turns:
            await turn.wait()
        self.world.hold(-self.size)
        self.world.log.append(f"close {self.name}")


class World:
    """A host of fake models of some sizes on a device of some bytes."""

    def __init__(self, capacity: int, **sizes: int) -> None:
        self.capacity, self.held, self.log = capacity, 0, list[str]()
        self.failures: list[Exception] = []
        plans = tuple(
            ModelPlan(name, size, 0, 0, 0, 0, 0, 1, False) for name, size in sizes.items()
        )
        plan = MemoryPlan(DeviceBytes(capacity, "free", gpu=False), plans)
        self.host = ModelHost(plan, self.build)
        for one in plans:
            shape = SimpleNamespace(max_positions=9)
            found: Any = SimpleNamespace(
                name=one.name, tokenizer=None, adapters={}, source=SimpleNamespace(shape=shape)
            )
            book: Any = None
            make: Any = None
            self.host.models.append(ServedModel(found, one, book, self.host.acquire, make))

    def hold(self, more: int) -> None:
        self.held += more
        assert 0 <= self.held <= self.capacity

    def build(self, model: ServedModel) -> Assembled:
        if self.failures:
            raise self.failures.pop()
        engine: Any = FakeEngine(self, model.model_name, model.plan.total)
        nothing: Any = None
        return Assembled(engine, nothing, nothing, nothing)

    def model(self, name: str) -> ServedModel:
        return self.host.find(name)

    async def turn(self, name: str) -> anyio.Event:
        request: Any = "request"
        turn: Any = await self.model(name).submit(request)
        return turn

    async def run(self, name: str) -> None:
        """Run a turn to its end."""
        turn = await self.turn(name)
        try:
            await checkpoint()
        finally:
            turn.set()  # who leaves a turn cancels it

    def at_rest(self) -> None:
        for model in self.host.models:
            assert (model.inside, model.promised, model.leaving) == (0, 0, False)
            assert model.load is None


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_least_recently_used_leaves() -> None:
    world = World(20, a=10, b=10, c=10)
    for name in ("a", "b", "a", "c", "a", "b"):
        await world.run(name)
    assert world.log == ["start a", "start b", "close b", "start c", "close c", "start b"]
    world.at_rest()


async def test_turns_end_before_their_model_leaves_and_new_ones_wait_for_its_return() -> None:
    world = World(10, a=10, b=10)
    under_way = await world.turn("a")
    done: list[str] = []

    async def run(name: str) -> None:
        await world.run(name)
        done.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "b")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(run, "a")
        await anyio.wait_all_tasks_blocked()
        assert (done, world.log) == ([], ["start a"])
        under_way.set()
    assert done == ["b", "a"]
    assert world.log == ["start a", "close a", "start b", "close b", "start a"]
    world.at_rest()


async def test_all_that_wait_for_a_load_get_in_before_the_model_leaves() -> None:
    world = World(10, a=10, b=10)
    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "a", "b", "a", "b"):
            tasks.start_soon(world.run, name)
    assert world.log == ["start a", "close a", "start b"]
    world.at_rest()


async def test_a_load_that_fails_is_told_and_tried_again() -> None:
    world = World(10, a=10)
    world.failures.append(ModelError("The disk is gone.", remedy="Mount it."))
    results: list[str] = []

    async def run() -> None:
        try:
            await world.run("a")
            results.append("ran")
        except ModelError:
            results.append("failed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        tasks.start_soon(run)
    assert sorted(results) == ["failed", "ran"]
    world.at_rest()


@pytest.mark.parametrize("steps", range(12))
async def test_whoever_gives_up_leaves_no_trace(steps: int) -> None:
    world = World(10, a=10, b=10)
    under_way = await world.turn("a")
    async with anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in range(4)]

        async def run(scope: anyio.CancelScope, name: str) -> None:
            with scope:
                await world.run(name)

        for scope, name in zip(scopes, ("b", "a", "b", "a"), strict=True):
            tasks.start_soon(run, scope, name)
        if steps == 0:
            await anyio.wait_all_tasks_blocked()
        for _ in range(steps):
            await checkpoint()
        for scope in scopes[: 1 + steps % 3]:
            scope.cancel()
        await checkpoint()
        under_way.set()
    world.at_rest()
    for name in ("a", "b", "a"):  # all still works
        await world.run(name)
    world.at_rest()


async def test_names_that_there_are_not() -> None:
    world = World(10, a=10, b=10)
    with pytest.raises(InvalidRequest, match=r"no model 'c'\. Use one of a, b"):
        world.host.find("c")


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> RuntimeConfig:
    root: Path = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        make_model(root / name, "qwen3", "tiny", seed, dtype="float32")
    return RuntimeConfig(
        model=str(root / "a"),
        more_models=(str(root / "b"),),
        pool_tokens=512,
        page_size=4,
        sandbox=None,
        threads=1,
        measure=False,
    )


async def test_programs_outlive_their_models_absence(
    cramped: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = assembly.plan_pools(cramped, assembly.find_models(cramped))
    room = DeviceBytes(plan.models[0].total + 1, "free", gpu=False)
    monkeypatch.setattr(assembly, "device_bytes", lambda device, ranks=1: room)
    greedy = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    messages = [{"role": "user", "content": "go"}, {"role": "tool", "content": ""}]
    whole = [messages[0], {"role": "tool", "content": "done, and it took a while"}]
    numbers = itertools.count()
    async with Runtime.open(cramped) as runtime:
        assert [model.plan.resident for model in runtime.models] == [True, False]
        said: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}
        async with (
            runtime.program("p", model="a") as a,
            runtime.program("p", model="b") as b,
        ):
            for name in ("a", "b", "a", "b"):
                program = {"a": a, "b": b}[name]
                opened = program.open_chat(messages, context=f"c{next(numbers)}")
                opened.write("done, and it took a while")
                reply = await program.chat(whole, sampling=greedy, opened=opened)
                said[name].append(reply.tokens)
            opened = b.open_chat(messages)  # by an engine that is gone when it is sealed
            opened.write("done, and it took a while")
            await a.chat(whole, sampling=greedy)
            said["b"].append((await b.chat(whole, sampling=greedy, opened=opened)).tokens)
        assert [len(set(answers)) for answers in said.values()] == [1, 1]
        assert said["a"][0] != said["b"][0]
        with pytest.raises(InvalidRequest, match="no model 'c'"):
            runtime.program(model="c")
