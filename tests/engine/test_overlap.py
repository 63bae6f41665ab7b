"""Steps that are launched before the last one's tokens are read: nobody can tell by the output."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.backend import StepHandle
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import fake_output
from agentrt.engine.faults import RestartLimits
from agentrt.engine.kv import PageCache
from agentrt.engine.output import TurnOutput
from agentrt.engine.params import SamplingParams
from agentrt.errors import BackendUnavailable, InternalError
from agentrt.scheduling.plan import Sample, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tokens import TokenList
from tests.engine.faults import FAULTS, FaultyBackend
from tests.engine.test_faults import PAGE, PAGES, VOCAB, Cycles, Reader, operations, perform


class Late(FaultyBackend):
    """A device: what was launched is written at any time until it has been waited for.

    ``wrong`` collects what must not be: a page that two steps under way write for different turns,
    or that a later one reads as another's, and steps out of order. Every ``patience``-th step of
    six tokens and more is given up; 0: none.
    """

    def __init__(self, patience: int = 0) -> None:
        super().__init__(PAGE, VOCAB)
        self.patience = patience
        self.long = 0
        self.flying: list[StepHandle] = []
        self.wrong: list[str] = []
        self.deepest = 0

    def written(self) -> dict[int, str]:
        """The pages that steps under way write, and whose they are."""
        return {
            piece.pages[position // PAGE]: piece.turn_id
            for handle in self.flying
            for piece in handle.plan.slices
            for position in range(piece.start, piece.start + piece.count)
        }

    def launch(self, plan: StepPlan) -> StepHandle:
        written = self.written()
        for piece in plan.slices:
            for page in piece.pages[: -(-(piece.start + piece.count) // PAGE)]:
                if written.get(page, piece.turn_id) != piece.turn_id:
                    self.wrong.append(f"{piece.turn_id} uses page {page} of {written[page]}")
        self.long += plan.tokens >= 6
        given_up = self.patience and plan.tokens >= 6 and self.long % self.patience == 0
        handle = StepHandle(plan) if given_up else super().launch(plan)
        self.flying.append(handle)
        self.deepest = max(self.deepest, len(self.flying))
        return handle

    def wait(self, handle: StepHandle) -> StepResult:
        if self.flying.pop(0) is not handle:
            self.wrong.append("steps were waited for out of order")
        return StepResult(abandoned=True) if type(handle) is StepHandle else super().wait(handle)

    def close(self, turn_id: str) -> None:
        if any(piece.turn_id == turn_id for h in self.flying for piece in h.plan.slices):
            self.wrong.append(f"{turn_id} was closed while a step had it")
        super().close(turn_id)

    def restart(self) -> None:
        if self.flying:
            self.wrong.append("a restart while a step was under way")
        super().restart()


class Overlapped(Cycles):
    """The loop with steps launched early, over a backend that watches what that does to pages."""

    def __init__(self, patience=0, **config):
        super().__init__(overlap=True, backend=Late(patience), **config)

    def submit(self, prompt, tokens, program="p", stops=()):
        turn_id = f"t{next(self.ids)}"
        sampling = SamplingParams(max_tokens=tokens, temperature=0, stop_token_ids=stops)
        output = TurnOutput(sampling, tokenizer=None, eos_ids=frozenset(), forced=False)
        request = TurnRequest(turn_id, program, TokenList(prompt), tokens)
        reader = Reader(turn_id)
        self.loop.submit(request, prompt, sampling, None, None, output, reader)
        self.turns[turn_id] = (reader, prompt, tokens)
        return reader

    def cycle(self, fault=None):
        super().cycle(fault)
        free = set(self.cache._pool._free)
        for page, turn_id in self.backend.written().items():
            assert page not in free, f"page {page} of {turn_id} is free while it is written"
        assert self.backend.wrong == []

    @property
    def early(self):
        return self.loop.statistics().overlapped_steps


def stops_at(prompt, place):
    """A token that the fake answers ``prompt`` with at ``place``, and not before."""
    output = fake_output(prompt, 40, VOCAB)
    return next(i for i in range(place, 40) if output[i] not in output[:i])


class TestEarly:
    def test_decodes_overlap_and_say_the_same(self):
        cycles = Overlapped()
        first, second = cycles.submit([1, 2, 3], 30, "a"), cycles.submit([4, 5], 20, "b")
        cycles.drain()
        cycles.check()
        assert (first.finish, second.finish) == ("length", "length")
        assert cycles.early > 25
        assert cycles.backend.deepest == 2

    def test_a_turn_that_stops_is_in_one_step_more_and_says_nothing_in_it(self):
        prompt = [1, 2, 3]
        place = stops_at(prompt, 6)
        wanted = fake_output(prompt, place + 1, VOCAB)
        cycles = Overlapped()
        first = cycles.submit(prompt, 40, "a", stops=(wanted[-1],))
        other = cycles.submit([4, 5], 40, "b")
        cycles.drain()
        assert (first.tokens, first.finish) == (wanted, "stop")
        assert (other.tokens, other.finish) == (fake_output([4, 5], 40, VOCAB), "length")
        assert cycles.scheduler.statistics().output_tokens == place + 1 + 40

    def test_a_newcomer_does_not_wait_for_others_to_end(self):
        cycles = Overlapped()
        cycles.submit([1, 2, 3], 40, "a")
        for _ in range(6):
            cycles.cycle()
        late = cycles.submit([4, 5], 2, "b")
        for _ in range(5):
            cycles.cycle()
        assert late.finish == "length"
        cycles.drain()
        cycles.check()

    def test_a_full_engine_overlaps_beside_a_queue(self):
        cycles = Overlapped(max_seqs=2)
        for i in range(4):
            cycles.submit([i + 1], 20, f"p{i}")
        cycles.drain()
        cycles.check()
        assert cycles.early > 25

    def test_without_a_free_page_the_planner_decides(self):
        cycles = Overlapped(pages=6)
        cycles.submit([1] * 7, 14, "a")
        cycles.submit([2] * 7, 14, "b")
        cycles.drain()
        cycles.check()
        assert cycles.scheduler.statistics().preemptions >= 1
        assert cycles.early >= 4

    def test_cancelled_with_a_step_under_way(self):
        cycles = Overlapped()
        first, other = cycles.submit([1, 2, 3], 40, "a"), cycles.submit([4, 5], 20, "b")
        for _ in range(5):
            cycles.cycle()
        assert cycles.loop._flight
        cycles.loop.cancel("t0")
        cycles.drain()
        cycles.check()
        assert (first.finish, other.finish) == ("cancelled", "length")

    def test_closed_with_a_step_under_way(self):
        cycles = Overlapped()
        first = cycles.submit([1, 2, 3], 40, "a")
        for _ in range(5):
            cycles.cycle()
        assert cycles.loop._flight
        cycles.loop.close(cycles.now)
        while cycles.loop._cycle():
            cycles.now += 0.1
        assert first.finish == "cancelled"
        assert not cycles.loop._flight
        cycles.check()

    def test_events_come_in_the_order_in_which_they_come_without(self):
        def events(make):
            seen = []
            cycles = make()
            cycles.loop._on_event = seen.append
            for i in range(5):
                cycles.submit([i + 1, 7], 5 + 3 * i, f"p{i}")
            cycles.drain()
            return [(type(event).__name__, getattr(event, "turn_id", None)) for event in seen]

        assert events(lambda: Overlapped(max_seqs=2)) == events(lambda: Cycles(max_seqs=2))


class TestFaultsInFlight:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_the_steps_turns_fail_and_all_others_survive(self, fault):
        cycles = Overlapped(max_seqs=2)
        first, second = cycles.submit([1, 2, 3], 19, "a"), cycles.submit([4, 5], 19, "b")
        waiting = cycles.submit([6, 7, 8], 9, "c")
        for _ in range(4):
            cycles.cycle()
        assert cycles.loop._flight
        cycles.cycle(fault)  # the fault is of the step that is launched now, behind another
        for _ in range(2):
            cycles.cycle()
        assert (first.finish, second.finish, waiting.finish) == ("failed", "failed", None)
        cycles.drain()
        cycles.check()
        assert waiting.finish == "length"
        figures = cycles.loop.statistics()
        assert (figures.restarts, figures.state) == (1, "running")
        assert cycles.backend.restarts == 1

    def test_one_turn_without_usable_logits_fails_alone(self):
        cycles = Overlapped()
        first, second = cycles.submit([1, 2, 3], 9, "a"), cycles.submit([4, 5], 9, "b")
        for _ in range(3):
            cycles.cycle()
        cycles.cycle("nan for one")
        cycles.drain()
        cycles.check()
        assert sorted((first.finish, second.finish)) == ["failed", "length"]
        assert cycles.loop.statistics().restarts == 0

    def test_a_step_that_got_on_behind_a_fault_counts_for_those_who_live(self):
        """Three bad turns make a fault; the fourth has a step under way, and keeps its tokens."""
        cycles = Overlapped(limits=RestartLimits(bad_turns=1))
        first, second = cycles.submit([1, 2, 3], 9, "a"), cycles.submit([4, 5], 9, "b")
        for _ in range(3):
            cycles.cycle()
        cycles.cycle("nan for one")
        cycles.drain()
        cycles.check()
        assert sorted((first.finish, second.finish)) == ["failed", "length"]
        assert cycles.loop.statistics().restarts == 1


@settings(max_examples=120, deadline=None)
@given(
    st.lists(operations, min_size=10, max_size=40),
    st.sampled_from(["fixed-ttl=1000", "program-fcfs", "continuum", "agentrt"]),
    st.sampled_from([9, 14, 40]),
    st.sampled_from([2, 1000]),
    st.sampled_from([0, 2, 3]),
)
def test_random_faults_in_random_histories(history, policy, pages, restarts, patience):
    """As without overlap: integrity after each step, and what comes out is right."""
    limits = RestartLimits(restarts, 60.0, bad_turns=3)
    share = 0.5 if patience else 0.0
    cycles = Overlapped(patience, policy=policy, pages=pages, limits=limits, newcomer_share=share)
    for operation in history:
        try:
            perform(cycles, operation)
        except BackendUnavailable:
            assert cycles.state == "broken"
            break
        if cycles.state != "broken":
            cycles.scheduler.check_integrity()
    cycles.drain()
    cycles.check()
    if cycles.state == "broken":
        return
    statistics = cycles.scheduler.statistics()
    assert statistics.pages_leased == statistics.pages_pinned
    assert statistics.running == statistics.waiting == 0


def said(tokens):
    """A step's result: one token a turn."""
    return StepResult({turn_id: Sample((token,)) for turn_id, token in tokens.items()})


class TestFollow:
    """The scheduler's side, where the loop does not come."""

    def make(self, **config):
        policy = make_policy("fcfs")
        kv = PageCache(PAGES, PAGE, policy.retention.score)
        return Scheduler(kv, policy, SchedulerConfig(token_budget=16, max_seqs=4, **config))

    def test_only_the_step_under_way_can_be_followed_and_only_once(self):
        scheduler = self.make()
        scheduler.submit(TurnRequest("a", "p", TokenList([1]), 9), 0.0)
        plan = scheduler.plan(0.0)
        assert scheduler.follow(plan, 0.0) is None  # a prefill
        scheduler.commit(plan, said({"a": 5}), 0.0)
        plan = scheduler.plan(0.0)
        following = scheduler.follow(plan, 0.0)
        assert [(s.turn_id, s.start, s.count) for s in following.slices] == [("a", 2, 1)]
        with pytest.raises(InternalError, match="not the only one"):
            scheduler.follow(plan, 0.0)
        with pytest.raises(InternalError, match="before the last one"):
            scheduler.plan(0.0)
        with pytest.raises(InternalError, match="not the planned one"):
            scheduler.commit(following, said({"a": 6}), 0.0)

    def test_time_is_charged_once(self):
        scheduler = self.make()
        scheduler.submit(TurnRequest("a", "p", TokenList([1]), 4), 0.0)
        scheduler.commit(scheduler.plan(0.0), said({"a": 5}), 1.0)
        plan = scheduler.plan(1.0)
        following = scheduler.follow(plan, 1.0)
        scheduler.commit(plan, said({"a": 6}), 2.0)
        scheduler.commit(following, said({"a": 7}), 3.0)
        [turn] = scheduler._book.running
        assert turn.program.service == 3.0


@pytest.mark.anyio
async def test_the_engine_ends_in_order_with_a_step_under_way():
    policy = make_policy("fcfs")
    kv = PageCache(PAGES, PAGE, policy.retention.score)
    scheduler = Scheduler(kv, policy, SchedulerConfig(token_budget=16, max_seqs=4))
    backend = Late()
    async with Engine(scheduler, backend, check=True, overlap=True) as engine:
        sampling = SamplingParams(max_tokens=80, temperature=0, ignore_eos=True)
        stream = await engine.submit(EngineRequest("t", "p", [1, 2, 3], sampling))
        with anyio.fail_after(30):
            first = await anext(stream)
        assert first.tokens
    with anyio.fail_after(30):
        rest = [chunk async for chunk in stream]
    tokens = [*first.tokens, *(token for chunk in rest for token in chunk.tokens)]
    assert tokens == fake_output([1, 2, 3], 80, VOCAB)[: len(tokens)]
    assert rest[-1].finish in ("cancelled", "length")
    assert (backend.flying, backend.wrong, backend.open_turns) == ([], [], 0)
