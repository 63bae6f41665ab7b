"""Deadlines: what remains is estimated, the least laxity goes first, the late give way."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.scheduling.deadlines import DeadlineBook, StepPace
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import Sample, StepResult, TurnAdmitted, TurnRequest
from agentrt.scheduling.tokens import VirtualTokens

STEP = 0.1


class Bench:
    """The slo policy over steps of ``STEP`` seconds and ``per_turn`` more for each that runs."""

    def __init__(self, seats: int = 1, per_turn: float = 0.0):
        policy = make_policy("slo", Surroundings(lambda tokens: 0.001 * tokens))
        self.book = next(one for one in policy.listeners if isinstance(one, DeadlineBook))
        config = SchedulerConfig(max_seqs=seats, max_wait=1e9, reserve="output")
        self.scheduler = Scheduler(PageCache(1024, 16, policy.retention.score), policy, config)
        self.per_turn = per_turn
        self.now = 0.0
        self.started: list[str] = []

    def submit(self, name: str, hints: TurnHints = NO_HINTS, output: int = 10, **more: object):
        tokens = VirtualTokens.first(20, name)
        request = TurnRequest(name, name, tokens, output, hints=hints, last=True, **more)
        self.scheduler.submit(request, self.now)

    def step(self) -> None:
        plan = self.scheduler.plan(self.now)
        self.now += STEP + self.per_turn * len(plan.slices)
        samples = {one.turn_id: Sample((0,)) for one in plan.slices if one.sample}
        events = self.scheduler.take_events()
        if plan.slices:
            events += self.scheduler.commit(plan, StepResult(samples), self.now)
        self.scheduler.check_integrity()
        self.started += [one.turn_id for one in events if isinstance(one, TurnAdmitted)]

    def run(self, steps: int = 2000) -> list[str]:
        for _ in range(steps):
            self.step()
            state = self.scheduler.statistics()
            if not state.waiting + state.running:
                return self.started
        raise AssertionError("the run does not end")


def by(deadline: float, **more: int) -> TurnHints:
    return TurnHints(program_deadline=deadline, **more)


class TestOrder:
    def test_the_one_that_must_start_first_goes_first(self):
        bench = Bench()
        bench.submit("running", by(40))
        bench.step()
        bench.submit("late-due", by(90))
        bench.submit("soon-due", by(60))
        assert bench.run() == ["running", "soon-due", "late-due"]

    def test_more_turns_to_come_mean_less_laxity(self):
        bench = Bench()
        bench.submit("first", by(50, remaining_turns=0))
        bench.run()
        bench.submit("short", by(60, remaining_turns=0))
        bench.submit("long", by(65, remaining_turns=20))
        assert bench.run()[1:] == ["long", "short"]

    def test_a_turns_own_deadline_counts_where_it_is_nearer(self):
        bench = Bench()
        bench.submit("program", by(40))
        bench.submit("turn", TurnHints(program_deadline=500, turn_deadline=20))
        assert bench.run() == ["turn", "program"]

    def test_no_deadline_comes_after_and_too_late_comes_last(self):
        bench = Bench()
        bench.submit("warm-up", output=2)
        bench.run()
        bench.submit("late", by(bench.now - 1))
        bench.submit("whenever")
        bench.submit("due", by(bench.now + 30))
        assert bench.run()[1:] == ["due", "whenever", "late"]


class TestPreemption:
    def test_an_urgent_turn_takes_the_place_of_one_with_slack(self):
        bench = Bench()
        bench.submit("slack", by(500), output=60)
        for _ in range(5):
            bench.step()
        bench.submit("urgent", by(bench.now + 5))
        bench.step()
        assert bench.started == ["slack", "urgent"]
        assert bench.run() == ["slack", "urgent", "slack"]
        assert bench.scheduler.statistics().preemptions == 1

    def test_it_happens_to_a_turn_at_most_once(self):
        bench = Bench()
        bench.submit("slack", by(500), output=60)
        bench.step()
        for number in range(3):
            bench.submit(f"urgent-{number}", by(bench.now + 8), output=5)
            for _ in range(12):
                bench.step()
        bench.run()
        assert bench.scheduler.statistics().preemptions == 1

    def test_a_late_turn_displaces_nobody(self):
        bench = Bench()
        bench.submit("slack", by(500), output=30)
        bench.step()
        bench.submit("late", by(bench.now - 5))
        assert bench.run() == ["slack", "late"]
        assert bench.scheduler.statistics().preemptions == 0


class TestPace:
    def test_a_line_through_the_steps_seen(self):
        pace = StepPace()
        for running in (1, 2, 4, 8):
            pace.observe(running, 0.006 + 0.001 * running, 10)
        assert pace.step_seconds(1) == pytest.approx(0.007)
        assert pace.step_seconds(16) == pytest.approx(0.022)
        assert pace.pace(15) == pytest.approx(1 / 3)

    def test_one_kind_of_step_tells_no_slope(self):
        pace = StepPace()
        assert pace.pace(5) == 1.0
        pace.observe(3, 0.01)
        assert (pace.step_seconds(1), pace.pace(50)) == (0.01, 1.0)

    def test_best_effort_waits_while_a_deadline_needs_the_pace(self):
        bench = Bench(seats=8, per_turn=0.1)
        for number in range(4):
            bench.submit(f"warm-{number}", output=10 + 5 * number)
        bench.run()
        bench.submit("due", by(bench.now + 0.25 * 40, output_tokens=40), output=40)
        for _ in range(3):
            bench.step()
        bench.submit("whenever")
        for _ in range(8):
            bench.step()
        assert "whenever" not in bench.started
        assert bench.run()[-1] == "whenever"

    def test_best_effort_runs_beside_a_deadline_with_slack(self):
        bench = Bench(seats=8, per_turn=0.1)
        for number in range(4):
            bench.submit(f"warm-{number}", output=10 + 5 * number)
        bench.run()
        bench.submit("due", by(bench.now + 500), output=40)
        bench.step()
        bench.submit("whenever")
        bench.step()
        assert bench.started[-2:] == ["due", "whenever"]


class TestEstimates:
    def test_turns_left_are_those_of_longer_programs_of_the_kind(self):
        bench = Bench()
        for number, turns in enumerate((2, 4, 6)):
            for index in range(turns):
                tokens = VirtualTokens.first(20, f"{number}/{index}")
                last = index == turns - 1
                request = TurnRequest(f"{number}/{index}", f"p{number}", tokens, 2, last=last)
                bench.scheduler.submit(request, bench.now)
                bench.run()
        kind = bench.book._kinds["default"]
        assert [kind.turns_left(served) for served in (0, 2, 5, 9)] == [4.0, 3.0, 1.0, 1.0]

    def test_nothing_is_kept_of_programs_that_ended(self):
        bench = Bench(seats=4)
        for number in range(5):
            bench.submit(f"p{number}", by(100))
        bench.run()
        assert not bench.book._of
        assert not bench.book._fresh
