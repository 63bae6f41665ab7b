"""The scheduler, one behaviour a test."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError, InternalError, InvalidRequest, ProgramTooLarge, QueueFull
from agentrt.scheduling import OnlinePrefillCost, Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.fake import FakeBackend
from agentrt.scheduling.plan import (
    PinEnded,
    Sample,
    StepResult,
    ToolEvent,
    TurnAdmitted,
    TurnFinished,
    TurnPreempted,
    TurnRequest,
)
from agentrt.scheduling.tokens import TokenList


class Bench:
    """A scheduler with a page of 4 tokens and a fake backend; time moves by hand."""

    def __init__(
        self, policy: str = "fixed-ttl=10", pool: int = 10, host: int | None = None, **config
    ) -> None:
        made = make_policy(policy)
        self.kv = PageCache(pool, 4, made.retention.score)
        defaults = {"token_budget": 8, "max_seqs": 4, "max_wait": 100.0}
        self.cost = OnlinePrefillCost()
        self.scheduler = Scheduler(
            self.kv,
            made,
            SchedulerConfig(**(defaults | config)),
            host=None if host is None else PageCache(host, 4, made.retention.score),
            step_observer=self.cost,
        )
        self.backend = FakeBackend()
        self.now = 0.0
        self.events = []
        self.transfers = []

    def submit(self, turn_id: str, prompt: int | list[int], output: int = 2, **more) -> TokenList:
        program, _, _ = turn_id.partition("/")
        ids = (
            prompt
            if isinstance(prompt, list)
            else [100 * ord(program[0]) + i for i in range(prompt)]
        )
        tokens = TokenList(ids)
        request = TurnRequest(turn_id, program, tokens, output, **more)
        self.scheduler.submit(request, self.now)
        return tokens

    def step(self, result: StepResult | None = None):
        plan = self.scheduler.plan(self.now)
        self.transfers += plan.transfers
        if plan.slices:
            result = result or self.backend.run(plan)
            self.events += self.scheduler.commit(plan, result, self.now)
        self.events += self.scheduler.take_events()
        self.scheduler.check_integrity()
        return plan

    def drain(self) -> None:
        for _ in range(200):
            if not self.step().slices:
                return
        raise AssertionError("does not drain")

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def admitted(self) -> list[str]:
        return [event.turn_id for event in self.of(TurnAdmitted)]


class TestConfig:
    @pytest.mark.parametrize(
        "wrong",
        [{"max_seqs": 0}, {"max_seqs": 8, "token_budget": 8}, {"max_wait": -1}, {"pin_share": 2.0}],
    )
    def test_out_of_range_is_refused(self, wrong):
        with pytest.raises(ConfigError):
            SchedulerConfig(**wrong)


class TestSubmit:
    def test_nothing_to_do_is_an_empty_plan(self):
        assert Bench().step().slices == ()

    def test_empty_prompt_no_output_and_double_id(self):
        bench = Bench()
        with pytest.raises(InvalidRequest):
            bench.submit("a/0", [])
        with pytest.raises(InvalidRequest):
            bench.submit("a/0", 3, 0)
        bench.submit("a/0", 3)
        with pytest.raises(InvalidRequest, match="under way"):
            bench.submit("a/0", 3)

    def test_too_large_for_the_pool(self):
        with pytest.raises(ProgramTooLarge, match="40 tokens"):
            Bench().submit("a/0", 38, 3)

    def test_too_many_waiting(self):
        bench = Bench(max_waiting=1)
        bench.submit("a/0", 3)
        with pytest.raises(QueueFull):
            bench.submit("b/0", 3)


class TestSteps:
    def test_prompt_in_chunks_then_decodes(self):
        bench = Bench()
        tokens = bench.submit("a/0", 10, 3)
        plans = [bench.step() for _ in range(4)]
        assert [(p.slices[0].start, p.slices[0].count, p.slices[0].sample) for p in plans] == [
            (0, 8, False), (8, 2, True), (10, 1, True), (11, 1, True),
        ]  # fmt: skip
        assert len(tokens) == 13
        (finished,) = bench.of(TurnFinished)
        assert (finished.stats.reason, finished.stats.output_tokens) == ("length", 3)
        assert (finished.stats.prefilled_tokens, finished.stats.cached_tokens) == (10, 0)

    def test_decodes_come_first_and_prefill_shares_the_step(self):
        bench = Bench()
        bench.submit("a/0", 3, 5)
        bench.step()
        bench.submit("b/0", 20, 2)
        plan = bench.step()
        assert [(s.turn_id, s.count) for s in plan.slices] == [("a/0", 1), ("b/0", 7)]

    def test_stop_from_the_backend_ends_the_turn(self):
        bench = Bench()
        bench.submit("a/0", 3, 9)
        bench.step(StepResult({"a/0": Sample([5], finish="stop", tool="bash")}))
        (finished,) = bench.of(TurnFinished)
        assert finished.stats.reason == "stop"

    def test_failure_of_a_prefill_chunk_ends_the_turn(self):
        bench = Bench()
        bench.submit("a/0", 12, 9)
        bench.step(StepResult({"a/0": Sample([], finish="failed")}))
        (finished,) = bench.of(TurnFinished)
        assert (finished.stats.reason, finished.stats.first_token) == ("failed", None)
        assert bench.kv.available() == 10

    def test_a_missing_sample_or_a_foreign_plan_is_a_bug(self):
        bench = Bench()
        bench.submit("a/0", 3)
        plan = bench.scheduler.plan(0.0)
        with pytest.raises(InternalError, match="before the last one"):
            bench.scheduler.plan(0.0)
        with pytest.raises(InternalError, match="do not fit"):
            bench.scheduler.commit(plan, StepResult(), 0.0)
        with pytest.raises(InternalError, match="not the planned one"):
            bench.scheduler.commit(plan, StepResult(), 0.0)

    def test_prefill_cost_is_learned(self):
        bench = Bench(token_budget=32)
        bench.submit("a/0", 20)
        plan = bench.scheduler.plan(0.0)
        bench.scheduler.commit(plan, bench.backend.run(plan), 2.0)
        assert bench.cost(10) == pytest.approx(1.0)

    def test_repeats_decodes_up_to_the_horizon_the_output_and_the_pages(self):
        bench = Bench(reserve="output")
        bench.submit("a/0", 4, 7)
        assert bench.scheduler.plan(0.0, horizon=50).repeat == 1
        bench.scheduler.commit(*self._run(bench), 0.0)
        plan = bench.scheduler.plan(0.0, horizon=50)
        assert plan.repeat == 6
        events = bench.scheduler.commit(plan, bench.backend.run(plan), 1.0)
        (finished,) = [event for event in events if isinstance(event, TurnFinished)]
        assert finished.stats.output_tokens == 7

    @staticmethod
    def _run(bench):
        plan = bench.scheduler._in_flight[0][0]
        return plan, bench.backend.run(plan)

    def test_a_repeated_step_may_be_stopped_short(self):
        bench = Bench(reserve="output")
        tokens = bench.submit("a/0", 4, 7)
        bench.step()
        plan = bench.scheduler.plan(0.0, horizon=50)
        bench.scheduler.commit(plan, StepResult({"a/0": Sample([1, 2])}), 1.0)
        bench.scheduler.check_integrity()
        assert len(tokens) == 7
        assert bench.scheduler.statistics().steps == 3
        bench.drain()
        assert len(tokens) == 11

    def test_repeats_only_within_pages_held_when_pages_come_as_needed(self):
        bench = Bench()
        bench.submit("a/0", 4, 7)
        bench.step()
        assert bench.scheduler.plan(0.0, horizon=50).repeat <= 4


class TestOrder:
    def test_fcfs_by_turn_program_fcfs_by_program(self):
        for policy, expected in (("fcfs", ["b/0", "a/1"]), ("program-fcfs", ["a/1", "b/0"])):
            bench = Bench(policy, max_seqs=1)
            bench.submit("a/0", 3, 1)
            bench.drain()
            bench.now = 1.0
            bench.submit("b/0", 3, 1)
            bench.submit("a/1", 5, 1)
            bench.events.clear()
            bench.drain()
            assert bench.admitted == expected

    def test_pinned_goes_before_an_older_program(self):
        bench = Bench("fixed-ttl=10", max_seqs=1)
        bench.submit("new/0", 3, 8)
        bench.submit("a/0", [7] * 8, 1)
        bench.drain()
        bench.submit("old/0", 3, 1)
        bench.submit("a/1", [7] * 9, 1)
        bench.events.clear()
        bench.drain()
        assert bench.admitted == ["a/1", "old/0"]

    def test_a_head_that_does_not_fit_is_not_overtaken(self):
        bench = Bench("fcfs", reserve="output")
        bench.submit("a/0", 20, 4)
        bench.submit("big/0", 20, 4)
        bench.submit("small/0", 2, 1)
        bench.drain()
        assert bench.admitted == ["a/0", "big/0", "small/0"]

    def test_past_max_wait_age_outranks_pins(self):
        bench = Bench("fixed-ttl=1000", max_seqs=1, max_wait=5.0)
        bench.submit("a/0", [7] * 8, 3)
        bench.submit("slow/0", 3, 1)
        bench.step()
        bench.now = 6.0
        bench.drain()
        bench.submit("slow/1", 9, 1)
        bench.submit("a/1", [7] * 9, 1)
        bench.now = 12.0
        bench.events.clear()
        bench.drain()
        assert bench.admitted == ["slow/1", "a/1"]


class TestPins:
    def pinned(self, policy: str = "fixed-ttl=10", **config) -> Bench:
        """A program whose first turn of 17 tokens has ended: four pages can be pinned."""
        bench = Bench(policy, **config)
        self.tokens = bench.submit("a/0", [7] * 16, 2)
        bench.drain()
        return bench

    def test_held_then_handed_off(self):
        bench = self.pinned()
        statistics = bench.scheduler.statistics()
        assert (statistics.pins, statistics.pages_pinned, statistics.pages_leased) == (1, 4, 4)
        bench.now = 3.0
        bench.submit("a/1", [*self.tokens.ids, 1, 2], 1)
        bench.drain()
        (pin,) = bench.of(PinEnded)
        assert (pin.outcome, pin.start, pin.end, pin.ttl, pin.tokens) == (
            "handed_off",
            0,
            3,
            10,
            16,
        )
        assert bench.of(TurnAdmitted)[-1].cached_tokens == 16

    def test_expires_at_its_time(self):
        bench = self.pinned()
        bench.now = 30.0
        bench.step()
        (pin,) = bench.of(PinEnded)
        assert (pin.outcome, pin.end) == ("expired", 10.0)
        assert bench.kv.available() == 10

    def test_a_context_that_is_back_keeps_its_pin_past_expiry(self):
        bench = self.pinned(max_seqs=1)
        bench.submit("b/0", 3, 8)
        bench.step()
        bench.now = 9.0
        bench.submit("a/1", [*self.tokens.ids, 1], 1)
        bench.now = 20.0
        bench.drain()
        assert bench.of(PinEnded)[0].outcome == "handed_off"

    def test_holds_against_a_head_while_something_runs(self):
        bench = self.pinned()
        bench.submit("b/0", 3, 8)
        bench.step()
        bench.submit("c/0", 24, 2)
        for _ in range(3):
            bench.step()
        assert bench.scheduler.statistics().pins == 1
        bench.drain()
        assert bench.of(PinEnded)[0].outcome == "broken"
        assert "c/0" in bench.admitted

    def test_breaks_for_any_head_if_the_policy_says_so(self):
        bench = self.pinned("continuum")
        assert bench.scheduler.statistics().pins == 0
        bench = Bench("continuum")
        for _ in range(3):
            bench.scheduler._book.policy.retention.admitted(50.0, evicted=True)
        bench.submit("a/0", [7] * 16, 2, next_tool="bash")
        bench.drain()
        assert bench.scheduler.statistics().pins == 1
        bench.submit("b/0", 3, 8)
        bench.submit("c/0", 24, 2)
        bench.step()
        assert bench.admitted[-1] == "c/0"
        assert bench.of(PinEnded)[0].outcome == "broken"

    def test_breaks_for_an_aged_turn(self):
        bench = self.pinned(max_wait=5.0)
        bench.submit("b/0", 3, 8)
        bench.step()
        bench.submit("c/0", 24, 2)
        bench.now = 6.0
        bench.step()
        assert bench.admitted[-1] == "c/0"

    def test_the_latest_program_loses_its_pin_first(self):
        bench = Bench(pool=12)
        bench.submit("a/0", [7] * 12, 1)
        bench.drain()
        bench.now = 1.0
        bench.submit("b/0", [8] * 12, 1)
        bench.drain()
        bench.now = 2.0
        bench.submit("c/0", 28, 4)
        bench.drain()
        assert [pin.program_id for pin in bench.of(PinEnded)] == ["b"]

    def test_share_under_pins_is_capped(self):
        bench = self.pinned(pin_share=0.3)
        assert bench.scheduler.statistics().pins == 0
        assert bench.of(PinEnded) == []

    def test_last_hint_and_end_program_release_at_once(self):
        bench = self.pinned()
        bench.scheduler.end_program("a", 4.0)
        bench.scheduler.end_program("nobody", 4.0)
        bench.step()
        assert bench.of(PinEnded)[0].outcome == "final"
        bench.submit("b/0", [9] * 16, 1, last=True)
        bench.drain()
        assert bench.scheduler.statistics().pins == 0
        assert bench.scheduler.statistics().programs == 0

    def test_what_the_next_prompt_no_longer_continues_is_let_go(self):
        bench = self.pinned()
        bench.submit("x/0", 2, 9, last=True)
        bench.step()
        bench.submit("a/1", [7] * 8 + [1] * 3, 1)
        assert bench.scheduler.statistics().pages_pinned == 2
        bench.drain()
        bench.submit("a/2", [5] * 6, 1)
        assert bench.scheduler.statistics().pins == 0

    def test_a_second_turn_of_the_context_replaces_the_pin(self):
        bench = self.pinned()
        bench.submit("a/1", [7] * 16 + [1], 2)
        bench.submit("a/2", [7] * 16 + [2], 2)
        bench.drain()
        assert bench.scheduler.statistics().pins == 1


class TestPressure:
    def test_the_lowest_rank_is_preempted_and_comes_back(self):
        bench = Bench("program-fcfs", pool=6)
        first = bench.submit("a/0", 8, 12)
        second = bench.submit("b/0", [5] * 7, 12)
        bench.drain()
        preempted = {event.turn_id for event in bench.of(TurnPreempted)}
        assert preempted == {"b/0"}
        assert (len(first), len(second)) == (20, 19)
        stats = {event.stats.turn_id: event.stats for event in bench.of(TurnFinished)}
        assert stats["b/0"].preemptions >= 1

    def test_a_preempted_turn_has_nothing_computed_while_it_waits(self):
        bench = Bench("program-fcfs", pool=6)
        bench.submit("a/0", 8, 12)
        bench.submit("b/0", [5] * 7, 12)
        while not bench.of(TurnPreempted):
            bench.step()
        waiting = bench.scheduler._book.turns["b/0"]
        assert (waiting.computed, waiting.decoding) == (0, False)

    def test_a_turn_that_gives_its_place_does_not_run_in_that_step(self):
        bench = Bench("plas", pool=6)
        bench.submit("a/0", 8, 12)
        bench.step()
        service = bench.scheduler._book.policy.listeners[0]
        service._calls[bench.scheduler._book.turns["a/0"]].level = 1
        bench.submit("b/0", [5] * 12, 2)
        plan = bench.step()
        assert [piece.turn_id for piece in plan.slices] == ["b/0"]
        assert [event.turn_id for event in bench.of(TurnPreempted)] == ["a/0"]
        bench.drain()
        outputs = {
            event.stats.turn_id: event.stats.output_tokens for event in bench.of(TurnFinished)
        }
        assert outputs == {"a/0": 12, "b/0": 2}

    def test_running_alone_waits_for_pages_that_are_being_copied_to_the_host(self):
        bench = Bench("fcfs", pool=5, host=8)
        bench.submit("a/0", 9, 2)
        while not bench.of(TurnFinished):
            bench.step()
        bench.submit("b/0", [5] * 8, 12)
        while bench.step().slices:
            assert len(bench.of(TurnFinished)) == 1
        (store,) = bench.transfers
        bench.scheduler.transferred([store.ticket], bench.now)
        bench.drain()
        assert [event.stats.output_tokens for event in bench.of(TurnFinished)] == [2, 12]

    def test_running_alone_breaks_pins_rather_than_failing(self):
        bench = Bench("fixed-ttl=1000", pool=6, pin_share=1.0)
        bench.submit("a/0", [7] * 12, 1)
        bench.drain()
        bench.submit("b/0", [5] * 8, 14)
        bench.drain()
        assert bench.of(PinEnded)[0].outcome == "broken"


class TestCancel:
    def test_unknown_waiting_and_running(self):
        bench = Bench(max_seqs=1)
        assert not bench.scheduler.cancel("a/0", 0.0)
        bench.submit("a/0", 3, 9)
        bench.submit("b/0", 3, 9)
        bench.step()
        assert bench.scheduler.cancel("b/0", 1.0)
        assert bench.scheduler.cancel("a/0", 1.0)
        bench.step()
        assert [event.stats.reason for event in bench.of(TurnFinished)] == ["cancelled"] * 2
        assert bench.kv.available() == 10

    def test_during_a_step_takes_effect_at_its_commit(self):
        bench = Bench()
        bench.submit("a/0", 3, 9)
        plan = bench.scheduler.plan(0.0)
        bench.scheduler.cancel("a/0", 0.0)
        assert bench.scheduler.statistics().running == 1
        bench.scheduler.commit(plan, bench.backend.run(plan), 0.0)
        assert bench.scheduler.statistics().running == 0
        assert bench.scheduler.statistics().pins == 0

    def test_ending_a_program_cancels_its_turns(self):
        bench = Bench()
        bench.submit("a/0", 3, 9)
        bench.submit("b/0", 3, 9)
        bench.step()
        bench.scheduler.end_program("a", 0.0)
        bench.submit("a/1", 3, 1)
        bench.drain()
        reasons = {event.stats.turn_id: event.stats.reason for event in bench.of(TurnFinished)}
        assert reasons == {"a/0": "cancelled", "b/0": "length", "a/1": "length"}


class TestTime:
    def test_next_deadline_is_the_first_expiry_or_age(self):
        bench = Bench("fixed-ttl=10", max_wait=50.0, max_seqs=1)
        assert bench.scheduler.next_deadline(0.0) is None
        bench.submit("a/0", [7] * 8, 1)
        bench.drain()
        bench.submit("b/0", 3, 9)
        bench.step()
        bench.now = 2.0
        bench.submit("c/0", 3, 9)
        assert bench.scheduler.next_deadline(2.0) == 10.0
        bench.now = 11.0
        bench.step()
        assert bench.scheduler.next_deadline(11.0) == 52.0
        assert bench.scheduler.next_deadline(60.0) is None

    def test_tool_events_name_the_gap(self):
        bench = Bench("continuum")
        bench.submit("a/0", 5, 1)
        bench.drain()
        bench.scheduler.tool_event(ToolEvent("a", "main", "started", "pytest"), 0.0)
        bench.scheduler.tool_event(ToolEvent("nobody", "main", "started", "pytest"), 0.0)
        bench.now = 2.5
        bench.submit("a/1", 7, 1)
        assert bench.scheduler._book.policy.retention._by_tool["pytest"].sorted == [2.5]


class TestIntegrity:
    def test_notices_turns_in_no_queue_and_pages_without_a_holder(self):
        bench = Bench()
        bench.submit("a/0", 3, 9)
        [turn] = bench.scheduler._book.waiting
        bench.scheduler._book.waiting.remove(turn)
        with pytest.raises(InternalError, match="one queue"):
            bench.scheduler.check_integrity()
        bench.scheduler._book.waiting.add(turn)
        bench.step()
        lease, turn.lease = turn.lease, None
        with pytest.raises(InternalError, match="holds no pages"):
            bench.scheduler.check_integrity()
        turn.lease = lease
        bench.submit("b/0", 3, 9)
        [waiting] = bench.scheduler._book.waiting
        waiting.lease = lease
        with pytest.raises(InternalError, match="waiting turn"):
            bench.scheduler.check_integrity()
