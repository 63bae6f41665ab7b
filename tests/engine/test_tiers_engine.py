"""The engine's thread with a host tier: it carries out transfers, and wakes up for prefetches."""

from __future__ import annotations

import threading
from functools import partial

import anyio
import pytest

from agentrt.engine.engine import Engine
from agentrt.engine.fake import FakeTurnBackend, fake_output
from agentrt.engine.kv import PageCache
from agentrt.engine.tiers import CopyDone, PageMover, TierStatistics
from agentrt.scheduling.plan import ToolEvent
from agentrt.scheduling.policy import KeepOnHost, Policy, Prefetch
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from tests.engine.test_engine import PAGE, VOCAB, ask, read

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=[False, True], ids=["", "overlap"], autouse=True)
def steps_launched_early(request, monkeypatch):
    """Every test with and without overlap."""
    monkeypatch.setattr(f"{__name__}.Engine", partial(Engine, overlap=request.param))


class Soon(KeepOnHost):
    """Wants KV back ``after`` seconds."""

    after = 1000.0

    def prefetch(self, context, now):
        return Prefetch(now + self.after, 60.0)


class SlotMover(PageMover):
    """Moves the slots of a fake backend, in a thread of its own, when ``gate`` lets it."""

    def __init__(self, backend, *, failing=()):
        self.backend, self.failing = backend, failing
        self.gate = threading.Event()
        self.gate.set()
        self.host, self.over, self.seen = {}, [], []
        self.closed = None
        self.generation = 0
        self.threads = []

    def start(self, wake):
        self.wake = wake

    def begin(self, transfers):
        for transfer in transfers:
            job = (transfer, self.generation)
            thread = threading.Thread(target=self.move, args=job, daemon=True)
            self.threads.append(thread)
            thread.start()

    def move(self, transfer, generation):
        assert self.gate.wait(20)
        if generation != self.generation:
            return
        self.seen.append(transfer.kind)
        good = transfer.kind not in self.failing
        for page, host in zip(transfer.pages, transfer.host_pages, strict=True) if good else ():
            for at in range(PAGE):
                slot = page * PAGE + at
                if transfer.kind == "store":
                    self.host[host, at] = self.backend._slots[slot]
                else:
                    self.backend._slots[slot] = self.host[host, at]
        if generation == self.generation:
            self.over.append((transfer.ticket, good))
        self.wake()

    def halt(self):
        self.generation += 1
        self.over = []

    def resume(self):
        pass

    def take_over(self):
        over, self.over = self.over, []
        done = tuple(ticket for ticket, good in over if good)
        return CopyDone(done, tuple(ticket for ticket, good in over if not good))

    def statistics(self):
        return TierStatistics(64, transfers=len(self.seen))

    def close(self, *, save):
        self.closed = save


def tiered_engine(pages=16, tiering=None, failing=()):
    plain = make_policy("fcfs")
    policy = Policy("test", plain.order, plain.retention, tiering=tiering or KeepOnHost())
    kv, host = (PageCache(count, PAGE, plain.retention.score) for count in (pages, 64))
    scheduler = Scheduler(kv, policy, SchedulerConfig(token_budget=16, max_seqs=4), host=host)
    backend = FakeTurnBackend(PAGE, VOCAB)
    mover = SlotMover(backend, failing=failing)
    return Engine(scheduler, backend, check=True, mover=mover), mover


async def stored(engine, mover, count):
    with anyio.fail_after(20):
        while mover.seen.count("store") < count or engine.statistics().scheduler.transfers:
            await anyio.sleep(0.005)


async def turn(engine, prompt, program, tokens=2):
    stream = await engine.submit(ask(prompt, tokens=tokens, program_id=program))
    got, _ = await read(stream)
    assert got == fake_output(prompt, tokens, VOCAB)
    return stream.stats


async def test_what_was_pushed_out_of_the_pool_is_loaded_again():
    engine, mover = tiered_engine()
    async with engine:
        await turn(engine, [1] * 40, "a")
        await stored(engine, mover, 1)
        await turn(engine, [2] * 50, "b")
        await stored(engine, mover, 2)
        stats = await turn(engine, [1] * 40, "c")
        assert stats.cached_tokens == 36
        assert stats.prefilled_tokens == 4
        assert "load" in mover.seen
    assert mover.closed is True
    assert engine.statistics().tier.transfers == len(mover.seen)


async def test_a_turn_waits_for_its_copy_and_others_go_on():
    engine, mover = tiered_engine(pages=24)
    async with engine:
        await turn(engine, [1] * 40, "a")
        await stored(engine, mover, 1)
        await turn(engine, [2] * 80, "b")
        await stored(engine, mover, 2)
        mover.gate.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(turn, engine, [1] * 40, "c")
            await anyio.sleep(0.05)
            await turn(engine, [3] * 10, "d")
            assert mover.seen.count("load") == 0
            mover.gate.set()
        assert mover.seen.count("load") == 1


async def test_a_load_that_fails_is_computed():
    engine, mover = tiered_engine(failing=("load",))
    async with engine:
        await turn(engine, [1] * 40, "a")
        await stored(engine, mover, 1)
        await turn(engine, [2] * 60, "b")
        await stored(engine, mover, 2)
        stats = await turn(engine, [1] * 40, "c")
        assert "load" in mover.seen
        assert stats.prefilled_tokens == 40


async def test_an_idle_engine_wakes_up_to_bring_kv_back():
    soon = Soon()
    engine, mover = tiered_engine(tiering=soon)
    async with engine:
        await turn(engine, [1] * 24, "a")
        await stored(engine, mover, 1)
        await turn(engine, [2] * 60, "b")
        await stored(engine, mover, 2)
        engine.end_program("b")
        assert "load" not in mover.seen
        soon.after = 0.05
        engine.tool_event(ToolEvent("a", "main", "ended", "bash"))
        with anyio.fail_after(20):
            while not engine.statistics().scheduler.prefetched_tokens:
                await anyio.sleep(0.01)
            while not engine.statistics().scheduler.pins:
                await anyio.sleep(0.01)
        stats = await turn(engine, [*[1] * 24, *fake_output([1] * 24, 2, VOCAB), 5], "a")
        assert stats.cached_tokens == 24


async def test_a_fault_gives_up_copies_and_open_turns_and_all_goes_on():
    engine, mover = tiered_engine(pages=24)
    doomed = ask([3] * 10, program_id="d")

    def before(plan):
        if any(piece.turn_id == doomed.turn_id for piece in plan.slices):
            raise RuntimeError("the device is gone")

    mover.backend.before = before
    async with engine:
        await turn(engine, [1] * 40, "a")
        await stored(engine, mover, 1)
        opened = engine.open([4] * 30, turn_id="o", program_id="o")
        mover.gate.clear()
        await turn(engine, [2] * 40, "b")
        failed = await engine.submit(doomed)
        with anyio.fail_after(20):
            async for _ in failed:
                pass
        assert failed.stats.reason == "failed"
        mover.gate.set()
        for thread in mover.threads:
            thread.join(20)
        await turn(engine, [1] * 40, "c")
        opened.append([5])
        stream = await opened.seal(ask([*[4] * 30, 5], tokens=3, program_id="o"))
        tokens, _ = await read(stream)
        assert tokens == fake_output([*[4] * 30, 5], 3, VOCAB)
    assert engine.statistics().restarts == 1
    assert engine.statistics().scheduler.opened == 0
