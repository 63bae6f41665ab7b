"""The schedule step by step: joins, conclusions, retries, timeouts, leases, gates, budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError, GuideError, InternalError
from agentrt.workflows.events import AskPerson, CancelStep, EndRun, Event, StartStep, Wake
from agentrt.workflows.guide import Edge, Guide, Retry, Step, StepPolicy
from agentrt.workflows.schedule import Schedule, ScheduleConfig, fold
from agentrt.workflows.schedule_joins import verdict
from agentrt.workflows.schedule_state import Inputs
from agentrt.workflows.schedule_timers import Timers, backoff
from tests.workflows.schedule_sim import iso, plan_of

ONCE = StepPolicy(retry=Retry(attempts=1))


class Run:
    """A schedule fed by hand. Starts are answered at once, everything else by the test."""

    def __init__(self, edges, policies=None, on_conclusion="cancel", **config):
        self.plan = plan_of(edges, policies, on_conclusion)
        self.schedule = Schedule(self.plan, ScheduleConfig(**config))
        self.log, self.commands, self.facts, self.now = [], [], [], 0.0
        self.put("run_started")

    @property
    def state(self):
        return self.schedule.state

    def put(self, kind, step=None, **data):
        self.log.append(Event(len(self.log), iso(self.now), kind, step, data))
        self.take(self.schedule.handle(self.log[-1], self.now))
        assert fold(self.plan, self.log) == self.state
        self.schedule.check_integrity()

    def take(self, commands):
        for command in commands:
            self.commands.append(command)
            if isinstance(command, StartStep):
                self.put("step_started", command.step, attempt=command.attempt)
        facts = self.schedule.take_facts()
        self.facts += facts
        for fact in facts:
            self.put(fact.kind, fact.step, **fact.data)

    def to(self, now):
        self.now = now
        self.take(self.schedule.tick(now))

    def done(self, step, *enabled, attempt=None, **data):
        edges = {
            e.name: "enabled" if e.target in enabled else "disabled"
            for e in self.plan.outgoing(step)
        }
        attempt = attempt or self.state.steps[step].attempt
        self.put(
            "step_finished",
            step,
            **{"attempt": attempt, "status": "succeeded", "edges": edges, **data},
        )

    def fail(self, step, status="failed"):
        attempt = self.state.steps[step].attempt
        self.put("step_finished", step, attempt=attempt, status=status, error="broken")

    def crash(self):
        """Restore from the log, one second later."""
        self.now += 1
        self.commands.clear()
        self.schedule = Schedule.restore(
            self.plan, self.schedule.config, self.log, now=self.now, time=iso(self.now)
        )
        self.put("run_resumed")

    def status(self, step):
        return self.state.steps[step].status

    def of(self, kind):
        return [command for command in self.commands if isinstance(command, kind)]

    @property
    def end(self):
        ends = self.of(EndRun)
        assert len(ends) <= 1
        return ends[0].status if ends else None


TWO = {"start": ["A", "B"], "A": ["C", "end"], "B": ["C", "end"], "C": ["end"]}


def joined(join, quorum=1, **more):
    return {"C": StepPolicy(join=join, quorum=quorum), **more}


# -- joins ---------------------------------------------------------------------------------------


def test_any_waits_for_all_edges_and_needs_one():
    run = Run(TWO)
    run.done("A", "C")
    assert run.status("C") == "pending"
    run.done("B")
    assert run.status("C") == "running"


def test_all_is_skipped_as_soon_as_one_edge_is_disabled():
    run = Run(TWO, joined("all"))
    run.done("A")
    assert run.status("C") == "skipped"
    assert run.state.steps["C"].reason == "1 of 2 incoming edges disabled, and it needs all"
    run.done("B", "C")
    assert run.status("C") == "skipped"
    assert run.end == "inconclusive"


def test_quorum_does_not_wait_and_is_skipped_when_out_of_reach():
    edges = {"start": ["A", "B", "D"], "A": ["C"], "B": ["C"], "D": ["C"], "C": ["end"]}
    run = Run(edges, joined("quorum", 2))
    run.done("A", "C")
    run.done("B", "C")
    assert run.status("C") == "running"
    assert run.status("D") == "running"
    run = Run(edges, joined("quorum", 2))
    run.done("A")
    run.done("B")
    assert run.status("C") == "skipped"


@given(
    st.sampled_from(["any", "all", "quorum"]),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_a_verdict_is_what_no_outcome_of_the_pending_edges_can_change(join, quorum, p, e, d):
    policy = StepPolicy(join=join, quorum=quorum)
    found = verdict(policy, Inputs(p, e, d))
    settled = {verdict(policy, Inputs(0, e + more, d + p - more)) for more in range(p + 1)}
    if found == "skip":
        assert settled == {"skip"}
    elif found == "fire" and join != "any":
        assert settled == {"fire"}
    elif found == "wait":
        assert p > 0


def test_what_is_cut_off_is_skipped_in_one_go():
    run = Run({"start": ["A"], "A": ["B", "end"], "B": ["C"], "C": ["D"], "D": ["end"]})
    run.done("A")
    assert [run.status(step) for step in "BCD"] == ["skipped"] * 3
    assert [fact.step for fact in run.facts] == ["B", "C", "D", "end"]
    assert run.end == "inconclusive"


# -- ends ----------------------------------------------------------------------------------------


def test_end_cancels_siblings_and_keeps_their_conclusions_when_they_win_the_race():
    run = Run(TWO)
    run.done("A", "end")
    assert run.of(CancelStep)[0].step == "B"
    assert run.end is None
    run.done("B", "end")
    assert run.end == "succeeded"
    assert run.state.conclusions == ["edge_A_end", "edge_B_end"]
    assert "edge_B_end" in run.of(EndRun)[0].reason


def test_cancelled_siblings_do_not_change_the_conclusion():
    run = Run(TWO)
    run.done("A", "end")
    run.put("step_cancelled", "B", attempt=1, reason="end")
    assert run.status("B") == "cancelled"
    assert run.end == "succeeded"


def test_drain_lets_the_running_finish_and_starts_nothing():
    run = Run(TWO, on_conclusion="drain")
    run.done("A", "C", "end")
    assert not run.of(CancelStep)
    run.done("B", "C")
    assert run.status("C") == "waiting"
    assert run.end == "succeeded"
    run.put("run_ended", status="succeeded")
    assert run.status("C") == "cancelled"


def test_finish_join_goes_on_to_a_join_that_has_begun_and_stops_the_rest():
    edges = {
        "start": ["A", "B", "X"],
        "A": ["C", "end"],
        "B": ["C"],
        "C": ["end", "D"],
        "D": ["end"],
        "X": ["end"],
    }
    run = Run(edges, on_conclusion="finish-join")
    run.done("A", "C", "end")
    assert [command.step for command in run.of(CancelStep)] == ["X"]
    run.put("step_cancelled", "X", attempt=1, reason="end")
    run.done("B", "C")
    assert run.status("C") == "running"
    assert run.end is None
    run.done("C", "D")
    assert run.status("D") == "waiting"
    assert run.end == "succeeded"


def test_failed_and_inconclusive_are_told_apart():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": ONCE})
    run.fail("A")
    assert run.end == "failed"
    run = Run({"start": ["A"], "A": ["end"]}, {"A": ONCE})
    run.done("A")
    assert run.end == "inconclusive"


def test_a_stop_cancels_what_runs_and_nothing_starts_any_more():
    run = Run({"start": ["A", "B"], "A": ["end"], "B": ["end"]}, workers=1)
    run.take(run.schedule.stop("cancelled", "asked to", run.now))
    assert [command.step for command in run.of(CancelStep)] == ["A"]
    run.put("step_cancelled", "A", attempt=1, reason="asked to")
    assert run.end == "cancelled"
    assert len(run.of(StartStep)) == 1


def test_a_run_that_never_started_can_end():
    schedule = Schedule(plan_of({"start": ["A"], "A": ["end"]}))
    schedule.handle(Event(0, iso(0), "run_ended", None, {"status": "failed"}), 0.0)
    assert schedule.state.status == "failed"


# -- attempts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ({}, "undecided edges: edge_A_end"),
        ({"edge_A_end": "Enabled"}, "neither state edges: edge_A_end='Enabled'"),
        ({"edge_A_end": "enabled", "edge_A_B": "enabled"}, "unknown edges: edge_A_B"),
        (["edge_A_end"], "edge decisions must be a mapping, not list"),
    ],
)
def test_edges_that_are_not_the_steps_own_are_an_error_that_is_retried_then_final(edges, message):
    policy = StepPolicy(retry=Retry(attempts=2, initial=1.0))
    run = Run({"start": ["A"], "A": ["end"]}, {"A": policy})
    run.put("step_finished", "A", attempt=1, status="succeeded", edges=edges)
    assert run.schedule.waits() == {"A": "retry"}
    assert run.state.steps["A"].error == message
    run.to(1.25)
    run.put("step_finished", "A", attempt=2, status="succeeded", edges=edges)
    assert run.status("A") == "failed"
    assert run.end == "failed"


def test_an_unknown_status_is_an_error():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": ONCE})
    run.put("step_finished", "A", attempt=1, status="completed", edges={"edge_A_end": "enabled"})
    assert run.state.steps["A"].error == "unknown step status 'completed'"


def test_a_failed_attempt_waits_before_the_next():
    run = Run({"start": ["A"], "A": ["end"]})
    run.fail("A")
    (fact,) = run.facts
    assert fact.kind == "step_retried"
    assert 0.375 <= fact.data["wait"] <= 0.625
    run.to(fact.data["wait"] - 0.01)
    assert len(run.of(StartStep)) == 1
    run.to(fact.data["wait"])
    assert run.of(StartStep)[1:] == [StartStep("A", 2)]


@given(st.integers(0, 99), st.integers(1, 200), st.floats(1.0, 1e300))
def test_backoff_grows_to_its_limit_and_depends_on_nothing_else(seed, failures, factor):
    retry = Retry(factor=factor)
    wait = backoff(retry, failures, seed=seed, step="A")
    assert wait == backoff(retry, failures, seed=seed, step="A")
    assert 0.375 <= wait <= retry.longest


def test_a_timeout_kills_then_retries_and_the_late_result_is_ignored():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(timeout=30.0)})
    assert Wake(30.0) in run.commands
    run.to(30.0)
    assert run.of(CancelStep) == [CancelStep("A", "timeout: more than 30 s")]
    run.fail("A", "timed_out")
    run.done("A", "end")
    assert run.state.ignored == 1
    assert run.state.conclusions == []
    run.to(31.0)
    run.done("A", "end", attempt=1)
    assert run.state.ignored == 2
    run.done("A", "end")
    assert run.end == "succeeded"


def test_a_step_that_cannot_be_stopped_is_written_off_and_not_tried_again():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(timeout=30.0)}, grace=5.0)
    run.to(30.0)
    run.to(35.0)
    assert run.status("A") == "timed_out"
    assert run.end == "failed"
    assert len(run.of(StartStep)) == 1


def test_a_lost_worker_is_noticed_by_its_silence():
    run = Run({"start": ["A"], "A": ["end"]}, lease=10.0)
    run.put("lease_renewed", "A", worker="w")
    run.to(9.0)
    run.put("lease_renewed", "A", worker="w")
    run.to(18.0)
    assert run.status("A") == "running"
    run.to(19.0)
    assert run.status("A") == "waiting"
    run.to(20.0)
    assert run.of(StartStep)[-1] == StartStep("A", 2)


def test_a_lost_step_that_must_not_run_twice_is_asked_about():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(idempotent=False)})
    run.put("lease_lost", "A", attempt=1, worker="w7")
    (ask,) = run.of(AskPerson)
    assert (ask.gate, ask.default, ask.options) == ("A/repeat-1", "deny", ("approve", "deny"))
    assert "w7" in ask.question
    run.put("gate_opened", "A", gate=ask.gate, options=list(ask.options), default="deny")
    run.put("gate_answered", "A", gate=ask.gate, answer="perhaps", by="person")
    assert run.status("A") == "waiting"
    run.put("gate_answered", "A", gate=ask.gate, answer="approve", by="person")
    assert run.of(StartStep)[-1] == StartStep("A", 2)


def test_a_repeat_that_nobody_allows_fails_the_step():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(idempotent=False)}, ask_seconds=60.0)
    run.fail("A")
    run.put("gate_opened", "A", gate="A/repeat-1", options=["approve", "deny"], default="deny")
    run.to(60.0)
    assert run.state.gates["A/repeat-1"].by == "default"
    assert run.end == "failed"


# -- resuming ------------------------------------------------------------------------------------


def test_a_resumed_run_restarts_what_ran_asks_where_it_must_and_leaves_the_rest():
    edges = {"start": ["A", "B", "C"], "A": ["end"], "B": ["end"], "C": ["D"], "D": ["end"]}
    run = Run(edges, {"B": StepPolicy(idempotent=False)})
    run.done("C", "D")
    run.crash()
    starts = {command.step for command in run.of(StartStep)}
    assert starts == {"A", "D"}
    assert [ask.gate for ask in run.of(AskPerson)] == ["B/repeat-1"]
    assert run.state.steps["A"].failures == 0


def test_a_gate_keeps_its_id_and_its_time_across_a_crash():
    policy = StepPolicy(gate="approve", gate_timeout=10.0, gate_default="approve")
    run = Run({"start": ["A"], "A": ["end"]}, {"A": policy})
    run.put("gate_opened", "A", gate="A/approve", options=["approve", "deny"], default="approve")
    run.now = 4.0
    run.crash()
    (ask,) = run.of(AskPerson)
    assert (ask.gate, ask.expires_in) == ("A/approve", 5.0)
    run.to(10.0)
    assert run.of(StartStep) == [StartStep("A", 1)]


def test_a_crash_between_the_conclusion_and_the_end_ends_at_once():
    run = Run({"start": ["A"], "A": ["end"]})
    run.done("A", "end")
    run.crash()
    assert run.end == "succeeded"


# -- gates and questions -------------------------------------------------------------------------


def test_a_step_that_is_not_approved_leads_nowhere():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(gate="approve")})
    assert run.schedule.waits() == {"A": "gate"}
    run.put("gate_opened", "A", gate="A/approve", options=["approve", "deny"], default="deny")
    run.put("gate_answered", "A", gate="A/approve", answer="deny", by="person")
    assert run.status("A") == "cancelled"
    assert run.end == "inconclusive"
    assert run.of(AskPerson)[0].expires_in is None


def test_a_gate_that_is_not_yet_in_the_log_is_not_answered_by_default():
    policy = StepPolicy(gate="approve", gate_timeout=5.0)
    run = Run({"start": ["A"], "A": ["end"]}, {"A": policy})
    run.to(5.0)
    assert not run.facts
    run.put("gate_opened", "A", gate="A/approve", default="deny")
    run.to(6.0)
    assert run.facts[0].data == {"gate": "A/approve", "answer": "deny", "by": "default"}


def test_the_time_that_a_person_takes_is_not_the_steps():
    run = Run({"start": ["A"], "A": ["end"]}, {"A": StepPolicy(timeout=30.0)})
    run.now = 20.0
    run.put("gate_opened", "A", gate="q1", question="Which?", options=[], default="none")
    assert run.state.steps["A"].waits_for == "question"
    run.to(500.0)
    assert not run.of(CancelStep)
    run.put("gate_answered", "A", gate="q1", answer="east", by="person")
    run.to(509.0)
    assert not run.of(CancelStep)
    run.to(510.0)
    assert run.of(CancelStep)


def test_a_question_expires_to_its_default():
    run = Run({"start": ["A"], "A": ["end"]})
    run.put("gate_opened", "A", gate="q1", question="?", default="no", expires=iso(7.0))
    run.to(7.0)
    assert run.state.gates["q1"].answer == "no"
    assert not run.state.open_gates()


# -- budgets and limits --------------------------------------------------------------------------


def test_tokens_beyond_the_budget_end_the_run():
    run = Run({"start": ["A", "B"], "A": ["C"], "B": ["end"], "C": ["end"]}, budget_tokens=99)
    run.done("A", "C", tokens=100)
    assert {command.step for command in run.of(CancelStep)} == {"B"}
    run.put("step_cancelled", "B", attempt=1, reason="budget")
    assert run.end == "failed"
    assert run.of(EndRun)[0].reason == "100 tokens used of 99"


def test_the_wall_budget_ends_the_run_and_does_not_count_the_time_of_a_crash():
    run = Run({"start": ["A"], "A": ["end"]}, wall_seconds=50.0)
    run.now = 40.0
    run.crash()
    run.to(90.5)
    assert not run.of(CancelStep)
    run.to(91.0)
    assert run.of(CancelStep)
    run.fail("A", "timed_out")
    assert run.end == "timed_out"


def test_a_conclusion_that_came_in_after_the_budget_stands():
    run = Run({"start": ["A"], "A": ["end"]}, wall_seconds=50.0)
    run.to(50.0)
    run.done("A", "end")
    assert run.end == "succeeded"


def test_the_longest_way_goes_first_when_workers_are_short():
    edges = {"start": ["A", "B", "C"], "A": ["end"], "B": ["D"], "C": ["end"], "D": ["end"]}
    run = Run(edges, workers=1)
    assert run.of(StartStep) == [StartStep("B", 1)]
    run = Run(edges, workers=1, times={"C": 10.0})
    assert run.of(StartStep) == [StartStep("C", 1)]
    assert run.schedule.statistics().ready == 2


def test_twice_the_same_event_counts_once():
    run = Run({"start": ["A"], "A": ["B"], "B": ["end"]})
    run.put("step_started", "A", attempt=1)
    run.done("A", "B", tokens=5)
    run.done("A", "B", tokens=5)
    run.put("run_started")
    assert run.state.tokens == 5
    assert run.state.ignored == 3
    assert "2 succeeded" in repr(run.schedule)


def test_timers_forget_what_is_moved_or_dropped():
    timers = Timers()
    for at in range(500):
        timers.set("timeout", "A", float(at))
        timers.set("retry", str(at), 1e9)
        timers.drop("retry", str(at))
    assert len(timers) == 1
    assert len(timers._heap) < 200
    assert timers.due(498.9) == []
    assert timers.due(499.0) == [("timeout", "A")]


# -- what is refused -----------------------------------------------------------------------------


def test_a_run_needs_a_worker():
    with pytest.raises(ConfigError, match="at least 1"):
        ScheduleConfig(workers=0)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ((Edge("x", "start", "A"), Edge("x", "A", "end")), "Two edges are named 'x'"),
        ((Edge("x", "start", "Z"),), "names 'Z', which is not a step"),
    ],
)
def test_edges_that_do_not_fit_are_refused_with_their_line(edges, message):
    class Bare:
        guide = Guide("g", "G", (Step("A", "A"),), path="g.md")

    Bare.edges = tuple(replace(edge, line=7) for edge in edges)
    with pytest.raises(GuideError, match=f"g.md:7: .*{message}"):
        Schedule(Bare())


def test_counters_that_are_off_are_found():
    run = Run(TWO)
    run.state.pending_edges += 1
    with pytest.raises(InternalError, match="pending edges"):
        run.schedule.check_integrity()
