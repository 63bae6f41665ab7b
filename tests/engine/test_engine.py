"""The engine's thread and its async front: real scheduler and pages, a fake model."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import count

import anyio
import pytest

from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import FakeTurnBackend, fake_output
from agentrt.engine.kv import PageCache
from agentrt.engine.params import SamplingParams
from agentrt.errors import (
    BackendUnavailable,
    InternalError,
    InvalidRequest,
    ProgramTooLarge,
    QueueFull,
)
from agentrt.scheduling.plan import SeqSlice, StepPlan, ToolEvent, TurnAdmitted, TurnFinished
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

pytestmark = pytest.mark.anyio

PAGE = 4
VOCAB = 50
IDS = count()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def make_scheduler(pages=64, **config):
    policy = make_policy("program-fcfs")
    cache = PageCache(pages, PAGE, policy.retention.score)
    return Scheduler(
        cache, policy, SchedulerConfig(**({"token_budget": 16, "max_seqs": 8} | config))
    )


def make_engine(scheduler=None, backend=None, **options):
    scheduler = scheduler or make_scheduler()
    backend = backend or FakeTurnBackend(PAGE, VOCAB)
    return Engine(scheduler, backend, check=True, **options)


def ask(prompt, tokens=5, **fields):
    sampling = fields.pop("sampling", SamplingParams(max_tokens=tokens, temperature=0))
    return EngineRequest(
        f"turn-{next(IDS)}", fields.pop("program_id", "p"), prompt, sampling, **fields
    )


async def read(stream):
    """Return the tokens and the chunks of a stream, read to its end."""
    with anyio.fail_after(20):
        chunks = [chunk async for chunk in stream]
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return [token for chunk in chunks for token in chunk.tokens], chunks


async def settled(engine, turns=0):
    """Wait until the engine has no more than ``turns`` turns."""
    with anyio.fail_after(20):
        while engine.statistics().turns > turns:
            await anyio.sleep(0.001)


class Gate:
    """Lets a test hold the engine thread at a step: ``before`` of the fake backend."""

    def __init__(self):
        self.reached = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.open = False

    def __call__(self, plan):
        self.reached.release()
        if not self.open and not self.passes.acquire(timeout=20):
            raise TimeoutError("the test left the gate closed")

    async def step(self):
        """Wait until a step is about to run."""
        assert await anyio.to_thread.run_sync(self.reached.acquire, True, 20)

    def release(self, *, once=False):
        self.open = not once
        self.passes.release()


class TestOutput:
    async def test_a_turn_gives_its_tokens_then_its_account(self):
        async with make_engine() as engine:
            stream = await engine.submit(ask([1, 2, 3], tokens=6))
            tokens, chunks = await read(stream)
        assert tokens == fake_output([1, 2, 3], 6, VOCAB)
        assert chunks[-1].finish == "length"
        assert (stream.stats.prompt_tokens, stream.stats.output_tokens) == (3, 6)
        assert stream.stats.reason == "length"
        assert stream.error is None
        assert repr(stream) == f"<TurnStream {stream.turn_id} [ended, 0 chunks waiting]>"

    async def test_many_turns_at_once_get_their_own_tokens_under_page_pressure(self):
        gate = Gate()
        engine = make_engine(make_scheduler(pages=16), FakeTurnBackend(PAGE, VOCAB, before=gate))
        prompts = [[i % VOCAB, 7, *range(i % 9)] for i in range(40)]
        got = {}

        async def one(index, prompt):
            stream = await engine.submit(ask(prompt, tokens=12, program_id=f"p{index}"))
            got[index], _ = await read(stream)

        async with engine, anyio.create_task_group() as group:
            for index, prompt in enumerate(prompts):
                group.start_soon(one, index, prompt)
            # The first step ends when all turns are handed in, so that the later ones overlap.
            await anyio.wait_all_tasks_blocked()
            gate.release()
        assert got == {i: fake_output(p, 12, VOCAB) for i, p in enumerate(prompts)}
        assert engine.statistics().scheduler.preemptions > 0
        assert engine.statistics().turns == 0

    async def test_the_next_turn_finds_the_prefix_of_the_last(self):
        async with make_engine() as engine:
            prompt = list(range(12))
            first, _ = await read(await engine.submit(ask(prompt, tokens=4)))
            stream = await engine.submit(ask([*prompt, *first, 9], tokens=4))
            second, _ = await read(stream)
        assert stream.stats.cached_tokens == 12
        assert second == fake_output([*prompt, *first, 9], 4, VOCAB)

    async def test_forced_output_comes_out_exactly_and_ends_with_stop(self):
        forced = [3, 1, 4, 1, 5, 9, 2, 6]
        async with make_engine() as engine:
            request = ask([1], forced=forced, sampling=SamplingParams(max_tokens=2))
            tokens, chunks = await read(await engine.submit(request))
        assert (tokens, chunks[-1].finish) == (forced, "stop")

    async def test_end_tokens_stop_a_turn_unless_ignored(self):
        natural = fake_output([5, 5], 20, VOCAB)
        end = natural[7]
        stop_at = natural.index(end) + 1
        async with make_engine(eos_ids=frozenset({end})) as engine:
            tokens, chunks = await read(await engine.submit(ask([5, 5], tokens=20)))
            assert (tokens, chunks[-1].finish) == (natural[:stop_at], "stop")
            sampling = SamplingParams(max_tokens=20, ignore_eos=True)
            tokens, chunks = await read(await engine.submit(ask([5, 5], sampling=sampling)))
            assert (tokens, chunks[-1].finish) == (natural, "length")

    async def test_text_stops_are_seen_by_the_scheduler(self):
        class Words:
            eos_ids = frozenset()

            def stream(self):
                return self

            def push(self, ids):
                return "".join(f"{token}," for token in ids)

            def flush(self):
                return ""

        natural = fake_output([8], 10, VOCAB)
        stop = f"{natural[3]},{natural[4]},"
        async with make_engine(tokenizer=Words()) as engine:
            sampling = SamplingParams(max_tokens=10, stop=(stop,))
            stream = await engine.submit(ask([8], sampling=sampling))
            tokens, chunks = await read(stream)
        assert tokens == natural[:5]
        assert "".join(c.text for c in chunks) == "".join(f"{token}," for token in natural[:3])
        assert (chunks[-1].finish, stream.stats.output_tokens) == ("stop", 5)


class TestRefusals:
    async def test_what_is_wrong_reaches_who_submitted_it(self):
        async with make_engine(make_scheduler(pages=4)) as engine:
            for wrong, error in [
                (ask([]), InvalidRequest),
                (ask([1], forced=[]), InvalidRequest),
                (ask([1], sampling=SamplingParams(top_p=2)), InvalidRequest),
                (ask([1], sampling=SamplingParams(stop=("x",))), InvalidRequest),
                (ask([VOCAB]), InvalidRequest),
                (ask([1] * 17), ProgramTooLarge),
            ]:
                with pytest.raises(error):
                    await engine.submit(wrong)
            await read(await engine.submit(ask([1])))
            assert engine.statistics().turns == 0
        assert engine._loop._backend.open_turns == 0

    async def test_a_turn_id_in_use_and_a_full_queue_are_refused(self):
        gate = Gate()
        backend = FakeTurnBackend(PAGE, VOCAB, before=gate)
        async with make_engine(make_scheduler(max_waiting=1), backend) as engine:
            first = ask([1])
            stream = await engine.submit(first)
            await gate.step()
            async with anyio.create_task_group() as group:
                refused = []

                async def submit(request):
                    try:
                        await read(await engine.submit(request))
                    except (InvalidRequest, QueueFull) as error:
                        refused.append(type(error))

                group.start_soon(submit, first)
                for _ in range(3):
                    group.start_soon(submit, ask([2]))
                await anyio.wait_all_tasks_blocked()
                gate.release()
            assert Counter(refused) == {InvalidRequest: 1, QueueFull: 2}
            assert (await read(stream))[0] == fake_output([1], 5, VOCAB)

    async def test_an_engine_that_does_not_run_takes_nothing(self):
        engine = make_engine()
        with pytest.raises(BackendUnavailable, match="not started"):
            await engine.submit(ask([1]))
        async with engine:
            with pytest.raises(BackendUnavailable, match="started before"):
                engine.start()
        with pytest.raises(BackendUnavailable, match="shutting down"):
            await engine.submit(ask([1]))
        await engine.aclose()
        assert repr(engine) == "<Engine [closed, 0 turns, 0 steps]>"


class TestCancelling:
    async def test_closing_the_stream_ends_the_turn_and_frees_its_pages(self):
        events, gate = [], Gate()
        backend = FakeTurnBackend(PAGE, VOCAB, before=gate)
        async with make_engine(backend=backend, on_event=events.append) as engine:
            stream = await engine.submit(ask([1, 2], tokens=200))
            await gate.step()
            gate.release(once=True)
            first = await stream.__anext__()
            assert first.tokens == (fake_output([1, 2], 1, VOCAB)[0],)
            await gate.step()
            await stream.aclose()
            await stream.aclose()
            gate.release()
            assert [chunk async for chunk in stream] == []
            await settled(engine)
            assert engine.statistics().scheduler.pages_leased == 0
        finished = [e.stats for e in events if isinstance(e, TurnFinished)]
        assert [stats.reason for stats in finished] == ["cancelled"]
        assert finished[0].output_tokens == 2

    async def test_cancelling_the_reader_cancels_the_turn(self):
        gate = Gate()
        async with make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate)) as engine:
            stream = await engine.submit(ask([1], tokens=200))
            await gate.step()
            with anyio.move_on_after(0.01) as scope:
                await stream.__anext__()
            assert scope.cancelled_caught
            gate.release()
            await settled(engine)
        assert engine.statistics().scheduler.turns_finished == 1
        assert engine.statistics().scheduler.output_tokens < 200

    async def test_cancelling_a_submit_under_way_leaves_no_turn(self):
        gate = Gate()
        async with make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate)) as engine:
            stream = await engine.submit(ask([1], tokens=3))
            await gate.step()
            with anyio.move_on_after(0.01):
                await engine.submit(ask([2], tokens=200))
            gate.release()
            await read(stream)
            await settled(engine)
        assert engine.statistics().scheduler.output_tokens < 200

    async def test_cancel_by_id_ends_the_stream_with_a_last_chunk(self):
        gate = Gate()
        async with make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate)) as engine:
            stream = await engine.submit(ask([1], tokens=200))
            await gate.step()
            engine.cancel(stream.turn_id)
            engine.cancel("nobody")
            gate.release()
            tokens, chunks = await read(stream)
        assert [chunk.finish for chunk in chunks] == [None, "cancelled"]
        assert stream.stats.output_tokens == 1
        assert tokens == fake_output([1], 1, VOCAB)

    async def test_a_waiting_turn_is_cancelled_at_once(self):
        gate = Gate()
        scheduler = make_scheduler(max_seqs=1)
        backend = FakeTurnBackend(PAGE, VOCAB, before=gate)
        async with make_engine(scheduler, backend) as engine, anyio.create_task_group() as group:
            first = await engine.submit(ask([1], tokens=3))
            await gate.step()
            group.start_soon(self.cancel_second, engine)
            await anyio.wait_all_tasks_blocked()
            gate.release()
            assert (await read(first))[0] == fake_output([1], 3, VOCAB)

    async def cancel_second(self, engine):
        async with await engine.submit(ask([2], tokens=3)) as second:
            engine.cancel(second.turn_id)
            tokens, chunks = await read(second)
            assert chunks[-1].finish in ("cancelled", "length")
            assert tokens == fake_output([2], len(tokens), VOCAB)

    async def test_ending_a_program_ends_its_turns_and_no_other(self):
        gate = Gate()
        async with make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate)) as engine:
            mine = await engine.submit(ask([1], tokens=200, program_id="mine"))
            await gate.step()
            async with anyio.create_task_group() as group:
                group.start_soon(self.read_other, engine)
                await anyio.wait_all_tasks_blocked()
                engine.end_program("mine")
                gate.release()
                assert (await read(mine))[1][-1].finish == "cancelled"

    async def read_other(self, engine):
        other = await engine.submit(ask([2], tokens=30, program_id="other"))
        assert (await read(other))[0] == fake_output([2], 30, VOCAB)


class TestFailures:
    async def test_a_step_that_raises_fails_its_turns_and_the_engine_goes_on(self):
        blown, gate = [], Gate()

        def blow(plan):
            gate(plan)
            if not blown and len(plan.slices) == 2:
                blown.append(plan)
                raise RuntimeError("out of memory")

        async def fails(stream):
            _, chunks = await read(stream)
            assert chunks[-1].finish == "failed"
            assert stream.stats.reason == "failed"
            assert stream.error == "The step failed: RuntimeError: out of memory"

        async def submit():
            await fails(await engine.submit(ask([1], tokens=100)))

        backend = FakeTurnBackend(PAGE, VOCAB, before=blow)
        async with make_engine(backend=backend) as engine:
            first = await engine.submit(ask([0], tokens=100))
            await gate.step()
            async with anyio.create_task_group() as group:
                group.start_soon(submit)
                await anyio.wait_all_tasks_blocked()
                gate.release()
                await fails(first)
            tokens, _ = await read(await engine.submit(ask([4])))
            assert tokens == fake_output([4], 5, VOCAB)
        assert engine.statistics().failed_steps == 1
        assert backend.open_turns == 0

    @pytest.mark.parametrize("length", [8, 40])
    async def test_nothing_of_a_failed_prefill_is_found_by_the_next_turn(self, length):
        """With 16 tokens a step, 40 take three steps; the second fails."""
        steps = count(1)

        def blow(plan):
            if next(steps) == (2 if length > 16 else 1):
                raise RuntimeError("device lost")

        backend = FakeTurnBackend(PAGE, VOCAB, before=blow)
        prompt = [token % VOCAB for token in range(length)]
        async with make_engine(backend=backend) as engine:
            stream = await engine.submit(ask(prompt))
            assert (await read(stream))[1][-1].finish == "failed"
            again = await engine.submit(ask(prompt))
            assert (await read(again))[0] == fake_output(prompt, 5, VOCAB)
        assert again.error is None

    async def test_an_error_of_the_scheduler_stops_the_engine_and_names_the_cause(self):
        class Broken(Scheduler):
            def plan(self, now, horizon=1):
                if self.statistics().steps == 3:
                    raise InternalError("Pages do not add up.")
                return super().plan(now, horizon)

        policy = make_policy("fcfs")
        cache = PageCache(64, PAGE, policy.retention.score)
        engine = make_engine(Broken(cache, policy, SchedulerConfig(token_budget=16, max_seqs=8)))
        async with engine:
            stream = await engine.submit(ask([1], tokens=50))
            tokens, chunks = await read(stream)
            assert chunks[-1].finish == "failed"
            assert "Pages do not add up" in stream.error
            assert tokens == fake_output([1], 3, VOCAB)
            with pytest.raises(BackendUnavailable, match="Pages do not add up"):
                await engine.submit(ask([1]))
            assert engine.statistics().state == "broken"

    async def test_a_submit_that_breaks_the_scheduler_is_answered_too(self):
        class Broken(Scheduler):
            def submit(self, request, now, opened=None):
                raise InternalError("The queue is corrupt.")

        policy = make_policy("fcfs")
        cache = PageCache(64, PAGE, policy.retention.score)
        async with make_engine(Broken(cache, policy)) as engine:
            with anyio.fail_after(20), pytest.raises(BackendUnavailable, match="queue is corrupt"):
                await engine.submit(ask([1]))

    @pytest.mark.parametrize("where", ["push", "flush"])
    async def test_text_that_cannot_be_made_fails_only_its_turn(self, where):
        class Clumsy:
            eos_ids = frozenset()

            def stream(self):
                return Clumsy()

            def push(self, ids):
                if where == "push" and ids[0] == bad:
                    raise KeyError("no such token")
                return "x"

            def flush(self):
                raise_at_end = where == "flush" and self.turn == 0
                if raise_at_end:
                    raise KeyError("half a token")
                return ""

            turns = count()

            def __init__(self):
                self.turn = next(Clumsy.turns) - 1

        bad = fake_output([1], 3, VOCAB)[2]
        assert bad not in fake_output([2], 3, VOCAB)
        async with make_engine(tokenizer=Clumsy()) as engine:
            stream = await engine.submit(ask([1], tokens=3))
            _, chunks = await read(stream)
            assert chunks[-1].finish == stream.stats.reason == "failed"
            assert "could not be read as text" in stream.error
            tokens, chunks = await read(await engine.submit(ask([2], tokens=3)))
        assert (tokens, chunks[-1].finish) == (fake_output([2], 3, VOCAB), "length")

    async def test_callbacks_that_raise_are_counted_and_stop_nothing(self):
        def callback(event):
            raise ValueError(type(event).__name__)

        async with make_engine(on_event=callback) as engine:
            tokens, _ = await read(await engine.submit(ask([1])))
        assert tokens == fake_output([1], 5, VOCAB)
        assert engine.statistics().callback_errors == 2

    async def test_a_backend_that_cannot_open_a_turn_refuses_only_that_turn(self):
        class Picky(FakeTurnBackend):
            def open(self, turn_id, prompt, *others):
                if prompt == [13]:
                    raise MemoryError("no room")
                super().open(turn_id, prompt, *others)

        async with make_engine(backend=Picky(PAGE, VOCAB)) as engine:
            with pytest.raises(InternalError, match="no room"):
                await engine.submit(ask([13]))
            assert (await read(await engine.submit(ask([1]))))[0]


class TestClosing:
    async def test_without_drain_open_turns_are_cancelled(self):
        engine = make_engine()
        engine.start()
        stream = await engine.submit(ask([1], tokens=240))
        await engine.aclose()
        _, chunks = await read(stream)
        assert chunks[-1].finish in ("cancelled", "length")
        assert engine.statistics().state == "closed"
        assert engine.statistics().scheduler.pages_leased == 0
        await engine.aclose()

    async def test_draining_lets_open_turns_finish_but_takes_no_more(self):
        gate = Gate()
        engine = make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate))
        engine.start()
        stream = await engine.submit(ask([1], tokens=30))
        await gate.step()
        async with anyio.create_task_group() as group:
            group.start_soon(engine.aclose, 60.0)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BackendUnavailable):
                await engine.submit(ask([2]))
            gate.release()
        tokens, chunks = await read(stream)
        assert (tokens, chunks[-1].finish) == (fake_output([1], 30, VOCAB), "length")

    async def test_the_drain_deadline_is_the_clocks(self):
        ticks, gate = count(), Gate()
        backend = FakeTurnBackend(PAGE, VOCAB, before=gate)
        engine = make_engine(backend=backend, clock=lambda: float(next(ticks)))
        engine.start()
        stream = await engine.submit(ask([1], tokens=240))
        await gate.step()
        async with anyio.create_task_group() as group:
            group.start_soon(engine.aclose, 100.0)
            await anyio.wait_all_tasks_blocked()
            gate.release()
        tokens, chunks = await read(stream)
        assert chunks[-1].finish == "cancelled"
        assert 0 < len(tokens) < 240

    async def test_events_come_in_order_and_statistics_add_up(self):
        events = []
        async with make_engine(on_event=events.append) as engine:
            for index in range(3):
                await read(await engine.submit(ask([index], tokens=4)))
            figures = engine.statistics()
        assert [type(e) for e in events] == [TurnAdmitted, TurnFinished] * 3
        assert (figures.scheduler.turns_finished, figures.scheduler.output_tokens) == (3, 12)
        assert figures.steps == figures.scheduler.steps == 12
        assert figures.last_step_tokens == 1


async def test_tool_events_reach_the_scheduler():
    seen = []

    class Listening(Scheduler):
        def tool_event(self, event, now):
            seen.append(event)

    policy = make_policy("fcfs")
    scheduler = Listening(PageCache(64, PAGE, policy.retention.score), policy)
    async with make_engine(scheduler) as engine:
        event = ToolEvent("p", "main", "started", "bash")
        engine.tool_event(event)
        await read(await engine.submit(ask([1])))
    assert seen == [event]


def test_the_fake_backend_finds_pages_that_hold_something_else():
    backend = FakeTurnBackend(PAGE, VOCAB)
    backend.open("a", [1, 2, 3], SamplingParams())
    backend.open("b", [1, 9, 3], SamplingParams())
    backend.run(StepPlan((SeqSlice("a", 0, 3, [0], True),)))
    for wrong in (SeqSlice("b", 2, 1, [0], True), SeqSlice("a", 3, 1, [1], True)):
        with pytest.raises(InternalError, match="does not hold its position"):
            backend.run(StepPlan((wrong,)))
    with pytest.raises(InternalError, match="samples before its newest token"):
        backend.run(StepPlan((SeqSlice("b", 0, 2, [1], True),)))


def test_a_reader_whose_loop_has_ended_does_not_stop_the_others():
    gate = Gate()
    engine = make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=gate))
    engine.start()

    async def leave():
        await engine.submit(ask([1], tokens=200))

    async def stay():
        await settled(engine)
        tokens, _ = await read(await engine.submit(ask([2])))
        await engine.aclose()
        return tokens

    anyio.run(leave)
    gate.release()
    assert anyio.run(stay, backend="trio") == fake_output([2], 5, VOCAB)
    assert engine.statistics().scheduler.output_tokens < 200
