"""Faults of the engine's thread: what counts as one, how often it starts anew, what survives."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.backend import EngineSample
from agentrt.engine.fake import fake_output
from agentrt.engine.faults import Fault, FaultWatch, RestartLimits, misfit
from agentrt.engine.kv import PageCache
from agentrt.engine.loop import EngineLoop
from agentrt.engine.output import TurnOutput
from agentrt.engine.params import SamplingParams
from agentrt.errors import BackendUnavailable, EngineFault, InternalError
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tokens import TokenList
from tests.engine.faults import FAULTS, FaultyBackend, OutOfMemoryError

PAGE, VOCAB, PAGES = 4, 50, 24
MAX_CYCLES = 2000

PLAN = StepPlan((SeqSlice("a", 0, 3, [0], True), SeqSlice("b", 0, 3, [1], False)))
GOOD = EngineSample((7,))
BAD = EngineSample((), "failed", error="NaN")


class TestMisfit:
    def test_what_fits(self):
        for samples in ({"a": GOOD}, {"a": BAD}, {"a": GOOD, "b": BAD}, {"a": Sample((1, 2))}):
            assert misfit(PLAN, StepResult(samples)) is None

    @pytest.mark.parametrize(
        ("samples", "words"),
        [
            ({}, "turn a was to be sampled and was not"),
            ({"a": GOOD, "c": GOOD}, "a sample of turn c, which was not in the step"),
            ({"a": GOOD, "b": GOOD}, "turn b was sampled before its newest token"),
            ({"a": EngineSample(())}, "turn a has a sample without tokens"),
            ({"a": EngineSample((-1,))}, "turn a has a sample that holds no token ids"),
            ({"a": EngineSample((0.5,))}, "turn a has a sample that holds no token ids"),
            ({"a": 5}, "turn a has int as its sample"),
        ],
    )
    def test_what_does_not(self, samples, words):
        assert words in misfit(PLAN, StepResult(samples))

    def test_no_result_at_all(self):
        assert misfit(PLAN, None) == "the backend returned NoneType for a step"
        assert misfit(PLAN, StepResult(None)) is not None


class TestWatch:
    def test_a_step_without_any_usable_logits_is_a_fault_and_one_bad_turn_is_not(self):
        watch = FaultWatch()
        assert watch.of_result(PLAN, StepResult({"a": GOOD}), 0.0) is None
        both = StepPlan((SeqSlice("a", 0, 3, [0], True), SeqSlice("b", 0, 3, [1], True)))
        assert watch.of_result(both, StepResult({"a": GOOD, "b": BAD}), 0.0) is None
        assert watch.of_result(both, StepResult({"a": BAD, "b": BAD}), 0.0).kind == "logits"
        assert watch.of_result(PLAN, StepResult({"a": BAD}), 0.0).kind == "logits"
        assert watch.of_result(PLAN, StepResult({}), 0.0).kind == "result"

    def test_many_bad_turns_within_the_window_are_a_fault(self):
        watch = FaultWatch(RestartLimits(window=60.0, bad_turns=3))
        both = StepPlan((SeqSlice("a", 0, 3, [0], True), SeqSlice("b", 0, 3, [1], True)))
        one_bad = StepResult({"a": GOOD, "b": BAD})
        assert [watch.of_result(both, one_bad, now) for now in (0.0, 40.0, 61.0)] == [None] * 3
        fault = watch.of_result(both, one_bad, 62.0)
        assert "3 turns got no usable logits" in fault.text
        assert watch.restart(62.0)
        assert watch.of_result(both, one_bad, 63.0) is None

    def test_exceptions_tell_running_out_of_memory_apart(self):
        kinds = [
            Fault.of_exception(error).kind
            for error in (MemoryError(), OutOfMemoryError("x"), RuntimeError("x"))
        ]
        assert kinds == ["memory", "memory", "step"]
        assert Fault.of_exception(ValueError("x")).text == "The step failed: ValueError: x"

    def test_three_restarts_within_the_window_and_no_fourth(self):
        watch = FaultWatch(RestartLimits(restarts=3, window=60.0))
        assert [watch.restart(now) for now in (0.0, 20.0, 59.0, 59.5)] == [True] * 3 + [False]
        assert watch.restart(60.0)
        assert not watch.restart(79.0)

    @given(st.lists(st.floats(0, 50), max_size=40), st.integers(0, 4), st.floats(1, 60))
    def test_never_more_than_allowed_in_any_window(self, gaps, restarts, window):
        watch = FaultWatch(RestartLimits(restarts, window))
        now, done = 0.0, []
        for gap in gaps:
            now += gap
            recent = [at for at in done if at > now - window]
            assert watch.restart(now) == (len(recent) < restarts)
            if len(recent) < restarts:
                done.append(now)
            watch.check_integrity()


class Here:
    """A bridge that runs at once what is posted to it."""

    def post(self, function, *args):
        function(*args)
        return True


class Reader:
    """What became of one turn."""

    bridge = Here()

    def __init__(self, turn_id):
        self.turn_id, self.refusal, self.taken = turn_id, None, False
        self.tokens, self.finish, self.error = [], None, None

    def answer(self, refusal):
        self.refusal, self.taken = refusal, True

    def feed(self, chunk, stats, error):
        assert self.finish is None, "a turn ended twice, or went on after its end"
        self.tokens += chunk.tokens
        self.finish, self.error = chunk.finish, error


class Cycles:
    """The engine's loop without its thread, on a clock of its own."""

    def __init__(
        self,
        *,
        policy="fixed-ttl=1000",
        limits=None,
        pages=PAGES,
        overlap=False,
        backend=None,
        preempt=False,
        **config,
    ):
        made = make_policy(policy)
        self.cache = PageCache(pages, PAGE, made.retention.score, rescore=made.retention.rescore)
        config = {"token_budget": 16, "max_seqs": 4, "max_wait": 50.0} | config
        self.scheduler = Scheduler(self.cache, made, SchedulerConfig(**config))
        self.backend = backend or FaultyBackend(PAGE, VOCAB)
        self.now, self.ids = 0.0, count()
        self.loop = EngineLoop(
            self.scheduler,
            self.backend,
            clock=lambda: self.now,
            on_event=None,
            check=True,
            limits=limits,
            overlap=overlap,
            preempt=preempt,
        )
        self.turns = {}

    def submit(self, prompt, tokens, program="p"):
        turn_id = f"t{next(self.ids)}"
        sampling = SamplingParams(max_tokens=tokens, temperature=0)
        output = TurnOutput(sampling, tokenizer=None, eos_ids=frozenset(), forced=False)
        request = TurnRequest(turn_id, program, TokenList(prompt), tokens)
        reader = Reader(turn_id)
        self.loop.submit(request, prompt, sampling, None, None, output, reader)
        self.turns[turn_id] = (reader, prompt, tokens)
        return reader

    def cycle(self, fault=None):
        """Go round once, as the thread does; ends the engine where that would."""
        self.backend.next_fault = fault
        self.now += 0.1
        waiting = self.loop._commands or self.loop._turns
        if not waiting or self.state == "broken":
            return
        try:
            self.loop._cycle()
        except EngineFault as error:
            self.loop._end("broken", error.message)
        self.backend.next_fault = None

    def drain(self):
        for _ in range(MAX_CYCLES):
            if not (self.loop._commands or self.loop._turns):
                return
            self.cycle()
        raise AssertionError("turns do not end")

    @property
    def state(self):
        return self.loop.statistics().state

    def check(self):
        """Whatever happened: what came out is right as far as it goes."""
        for reader, prompt, tokens in self.turns.values():
            wanted = fake_output(prompt, tokens, VOCAB)
            assert reader.tokens == wanted[: len(reader.tokens)]
            if reader.finish == "length":
                assert reader.tokens == wanted
            if reader.finish == "failed":
                assert reader.error
            assert reader.finish is not None or reader.refusal is not None
        assert self.backend.open_turns == 0 or self.state == "broken"


class TestStartingAnew:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_the_steps_turns_fail_and_all_others_survive(self, fault):
        cycles = Cycles(max_seqs=2)
        first, second = cycles.submit([1, 2, 3], 9, "a"), cycles.submit([4, 5], 9, "b")
        waiting = cycles.submit([6, 7, 8], 9, "c")
        for _ in range(4):
            cycles.cycle()
        cycles.cycle(fault)
        assert (first.finish, second.finish, waiting.finish) == ("failed", "failed", None)
        cycles.drain()
        cycles.check()
        assert waiting.finish == "length"
        figures = cycles.loop.statistics()
        assert (figures.restarts, figures.failed_steps, figures.state) == (1, 1, "running")
        assert cycles.backend.restarts == 1
        after = cycles.submit([1, 2, 3], 9, "a")
        cycles.drain()
        assert (after.finish, after.tokens) == ("length", fake_output([1, 2, 3], 9, VOCAB))

    def test_a_turn_that_is_being_prefilled_beside_bad_logits_starts_over(self):
        cycles = Cycles(token_budget=5)
        first, second = cycles.submit([1, 2, 3], 9, "a"), cycles.submit([2] * 20, 6, "b")
        for _ in range(3):
            cycles.cycle()
        cycles.cycle("nan for all")
        assert (first.finish, second.finish) == ("failed", None)
        assert cycles.scheduler.statistics().waiting == 1
        cycles.drain()
        cycles.check()
        assert second.finish == "length"

    def test_pins_are_broken_and_the_prefix_tree_is_empty(self):
        cycles = Cycles()
        first = cycles.submit(list(range(12)), 4)
        cycles.drain()
        statistics = cycles.scheduler.statistics()
        assert (statistics.pins, statistics.pages_pinned) == (1, 3)
        cycles.submit([40], 3, "other")
        cycles.cycle("raise")
        statistics = cycles.scheduler.statistics()
        assert (statistics.pins, statistics.pins_broken, statistics.programs) == (0, 1, 2)
        assert statistics.pages_free == PAGES
        again = cycles.submit([*range(12), *first.tokens, 9], 4)
        cycles.drain()
        assert again.finish == "length"
        cycles.check()

    def test_one_turn_without_usable_logits_fails_alone_and_nothing_starts_anew(self):
        cycles = Cycles()
        first, second = cycles.submit([1, 2, 3], 9, "a"), cycles.submit([4, 5], 9, "b")
        for _ in range(3):
            cycles.cycle()
        cycles.cycle("nan for one")
        cycles.drain()
        cycles.check()
        assert sorted((first.finish, second.finish)) == ["failed", "length"]
        assert cycles.loop.statistics().restarts == 0

    def test_too_many_faults_stop_the_engine_and_the_reason_is_told(self):
        cycles = Cycles(limits=RestartLimits(restarts=3, window=60.0))
        for expected in ("running", "running", "running", "broken"):
            cycles.submit([1, 2, 3], 5)
            cycles.cycle("raise")
            assert cycles.state == expected
        with pytest.raises(BackendUnavailable, match=r"kernel is bad.*3 times within 60 s"):
            cycles.submit([1], 5)
        assert cycles.loop.statistics().fault == "The step failed: RuntimeError: the kernel is bad"

    def test_faults_far_apart_stop_nothing(self):
        cycles = Cycles(limits=RestartLimits(restarts=1, window=60.0))
        for _ in range(5):
            cycles.submit([1, 2, 3], 5)
            cycles.cycle("memory")
            cycles.now += 60.0
        assert (cycles.state, cycles.loop.statistics().restarts) == ("running", 5)

    @pytest.mark.parametrize(("lost", "state"), [(1, "running"), (2, "running"), (3, "broken")])
    def test_a_backend_that_cannot_be_rebuilt_is_tried_again_and_then_given_up(self, lost, state):
        cycles = Cycles(max_seqs=1)
        cycles.backend.lost = lost
        cycles.submit([1, 2, 3], 5, "a")
        waiting = cycles.submit([4, 5], 5, "b")
        cycles.cycle("raise")
        assert cycles.state == state
        cycles.drain()
        assert waiting.finish == ("length" if state == "running" else "failed")
        if state == "broken":
            assert "could not be rebuilt: RuntimeError: the device is gone" in waiting.error

    def test_a_cache_is_not_reset_under_a_lease(self):
        cache = PageCache(4, PAGE, lambda node: 0)
        lease = cache.acquire("a", [], 2, 0.0)
        with pytest.raises(InternalError, match="under 1 leases"):
            cache.reset()
        cache.release(lease, 0.0)
        cache.reset()
        cache.check_integrity()


PROMPTS = [[1, 2, 3], list(range(14)), list(range(9)), [7] * 21, [3]]
prompts = st.sampled_from(PROMPTS)
operations = st.one_of(
    st.tuples(st.just("submit"), prompts, st.integers(1, 12), st.sampled_from("abc")),
    st.tuples(st.just("cycle"), st.integers(1, 4)),
    st.tuples(st.just("fault"), st.sampled_from([*FAULTS, "nan for one"]), st.integers(0, 1)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("end"), st.sampled_from("abc")),
    st.tuples(st.just("later"), st.floats(0, 40)),
)


def perform(cycles, operation):
    """Carry out one operation of a random history."""
    match operation:
        case ("submit", prompt, tokens, program):
            cycles.submit(prompt, tokens, program)
        case ("cycle", times):
            for _ in range(times):
                cycles.cycle()
        case ("fault", fault, lost):
            cycles.backend.lost = lost
            cycles.cycle(fault)
            cycles.backend.lost = 0
        case ("cancel", number):
            cycles.loop.cancel(f"t{number}")
        case ("end", program):
            cycles.loop.call(lambda scheduler, now: scheduler.end_program(program, now))
        case ("later", seconds):
            cycles.now += seconds


@settings(max_examples=150, deadline=None)
@given(
    st.lists(operations, min_size=10, max_size=40),
    st.sampled_from(["fixed-ttl=1000", "program-fcfs", "continuum", "agentrt"]),
    st.sampled_from([9, 14, 40]),
    st.sampled_from([2, 1000]),
)
def test_random_faults_in_random_histories(history, policy, pages, restarts):
    """Integrity is checked after every step by the loop itself (``check``), and here at the end."""
    cycles = Cycles(policy=policy, pages=pages, limits=RestartLimits(restarts, 60.0, bad_turns=3))
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
        assert restarts == 2
        return
    for prompt in PROMPTS:
        last = cycles.submit(prompt, 6, "last")
        cycles.drain()
        assert last.tokens == fake_output(prompt, 6, VOCAB)
    statistics = cycles.scheduler.statistics()
    assert statistics.pages_leased == statistics.pages_pinned
    assert statistics.running == statistics.waiting == 0
