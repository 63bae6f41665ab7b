"""Random DAGs, decisions, durations, faults and crashes: every run ends in a named state."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.workflows.events import Event
from agentrt.workflows.guide import END, START, StepPolicy
from agentrt.workflows.plan import Plan
from agentrt.workflows.schedule import Schedule, ScheduleConfig, fold
from agentrt.workflows.schedule_joins import goes_on_after_conclusion, verdict
from agentrt.workflows.schedule_machine import Machine
from tests.workflows.schedule_sim import (
    ALL_FAULTS,
    TERMINAL,
    Faults,
    Shell,
    iso,
    plan_of,
    random_edges,
    random_plan,
)


def random_config(rng: random.Random) -> ScheduleConfig:
    return ScheduleConfig(
        workers=rng.randint(1, 6),
        budget_tokens=rng.choice([None, None, None, 80]),
        wall_seconds=rng.choice([None, None, 100.0]),
        seed=rng.randrange(10),
        grace=5.0,
        lease=10.0,
        ask_seconds=100.0,
    )


def random_run(seed: int, faults: Faults, *, most: int = 12, check: bool = False) -> Shell:
    rng = random.Random(seed)
    plan = random_plan(rng, rng.randint(1, most))
    return Shell(plan, random_config(rng), rng, faults, check=check).run()


def assert_sound(shell: Shell) -> None:
    state = shell.schedule.state
    assert state.status in TERMINAL
    assert state.idle
    assert shell.most_at_once <= shell.config.workers
    graph = shell.schedule.graph
    for name, step in state.steps.items():
        impossible = verdict(graph.policies[name], state.inputs[name]) == "skip"
        if name not in (START, END):
            assert (step.status == "skipped") == (impossible and step.status != "pending")
            if state.status in ("inconclusive", "failed") and shell.config.budget_tokens is None:
                assert step.status not in ("pending", "waiting", "running")
    assert bool(state.conclusions) == (state.steps[END].status == "succeeded")
    if state.status == "succeeded":
        assert state.conclusions
    if state.status == "inconclusive":
        assert not state.conclusions
        assert not state.failed_steps()
    shell.schedule.check_integrity()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_state_is_the_fold_of_every_prefix_of_the_log(seed):
    shell = random_run(seed, ALL_FAULTS, most=8, check=True)
    assert_sound(shell)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_quiet_runs_end_without_an_ignored_event(seed):
    quiet = Faults(duration=lambda rng, step: rng.uniform(0.1, 4.0))
    shell = random_run(seed, quiet)
    assert_sound(shell)
    state = shell.schedule.state
    assert not state.failed_steps() or state.status == "timed_out"
    if not any(event.kind == "step_cancelled" for event in shell.log):
        assert shell.ignored_at_end == 0


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.just(float(2)),
    st.text(max_size=3),
    st.lists(st.text(max_size=2), max_size=2),
    st.just({"edge_A_end": []}),
)
KINDS = (
    "run_started",
    "run_resumed",
    "run_ended",
    "step_started",
    "step_finished",
    "step_cancelled",
    "step_skipped",
    "gate_opened",
    "gate_answered",
    "lease_lost",
    "lease_renewed",
    "nonsense",
)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "attempt": st.one_of(st.just(1), JSON),
        "status": st.one_of(st.sampled_from(["succeeded", "failed", "timed_out"]), JSON),
        "edges": st.one_of(st.just({"edge_A_end": "enabled", "edge_A_B": "disabled"}), JSON),
        "gate": st.one_of(st.sampled_from(["A/approve", "A/repeat-1"]), JSON),
        "answer": st.one_of(st.sampled_from(["approve", "deny"]), JSON),
        "options": JSON,
        "default": JSON,
        "tokens": JSON,
        "worker": JSON,
        "final": JSON,
        "expires": st.one_of(st.just(iso(3.0)), JSON),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([None, "A", "B", "end", "Z"]), DATA),
        max_size=25,
    ),
    st.booleans(),
)
def test_no_event_whatever_it_holds_raises_or_spoils_the_counters(made, compat):
    policies = {"A": StepPolicy(gate="approve", gate_timeout=2.0, idempotent=False)}
    plan = plan_of({"start": ["A"], "A": ["B", "end"], "B": ["end"]}, policies)
    schedule = Schedule(plan, ScheduleConfig(compat=compat))
    events = [("run_started", None, {}), ("step_started", "A", {"attempt": 1}), *made]
    log = []
    for index, (kind, step, data) in enumerate(events):
        log.append(Event(index, iso(index), kind, step, data))
        schedule.handle(log[-1], float(index))
        schedule.check_integrity()
        assert fold(plan, log, compat=compat) == schedule.state
    if not compat:
        schedule.tick(1e6)
        assert fold(plan, log) == schedule.state


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_nothing_starts_after_a_conclusion_but_what_a_join_waits_for(seed):
    shell = random_run(seed, replace(ALL_FAULTS, crash=0.0))
    machine, allowed = Machine(shell.schedule.graph), None
    joins = shell.plan.guide.on_conclusion == "finish-join"
    for event in shell.log:
        if event.kind == "step_started" and allowed is not None:
            assert event.step in allowed
        machine.apply(event)
        if machine.state.conclusions and allowed is None:
            graph, state = machine.graph, machine.state
            allowed = goes_on_after_conclusion(graph, state) if joins else set()


def test_ten_thousand_random_faulty_runs_end_in_a_named_state():
    """0 hangs: each run is bounded by ``BOUND`` occurrences, and raises where it exceeds it."""
    seen: Counter[str] = Counter()
    crashes = 0
    for seed in range(10_000):
        shell = random_run(seed, ALL_FAULTS, most=7)
        assert_sound(shell)
        seen[shell.schedule.state.status] += 1
        crashes += shell.crashes
    assert set(seen) == {"succeeded", "failed", "timed_out", "inconclusive"}
    assert crashes > 1_000


def test_the_same_run_twice_gives_the_same_log():
    for seed in range(50):
        assert random_run(seed, ALL_FAULTS).log == random_run(seed, ALL_FAULTS).log


def one_end(rng: random.Random) -> Plan:
    """A plan in which only the last step leads to end, so that no conclusion cuts others off."""
    edges = random_edges(rng, 6, 0.3)
    for targets in edges.values():
        targets[:] = ["Last" if target == END else target for target in targets]
    return plan_of({**edges, "Last": [END]})


@dataclass
class FixedShell(Shell):
    """What a step decides depends on the step alone; dies once the log has ``crash_at`` events."""

    crash_at: int | None = None

    def result(self, step: str, attempt: int) -> dict[str, Any]:
        rng = random.Random(step)
        edges = {name: rng.choice(["enabled", "disabled"]) for name in self.out[step]}
        return {"attempt": attempt, "status": "succeeded", "edges": edges}

    def observe(self, event: Event) -> None:
        super().observe(event)
        if len(self.log) == self.crash_at:
            self.at(0.0, self.crash)


@pytest.mark.parametrize("seed", range(15))
def test_a_crash_at_each_event_comes_to_the_same_steps_and_edges(seed):
    """Fold what was written up to each event, resume, and go on."""
    plan, config = one_end(random.Random(seed)), ScheduleConfig(workers=2)
    whole = FixedShell(plan, config, random.Random(seed)).run().schedule.state
    crashes = 0
    for index in range(2, whole.counts.total() * 3):
        shell = FixedShell(plan, config, random.Random(seed), crash_at=index).run()
        state = shell.schedule.state
        crashes += shell.crashes
        assert state.statuses() == whole.statuses()
        assert (state.edges, state.status) == (whole.edges, whole.status)
        assert fold(plan, shell.log) == state
    assert crashes >= 3


def test_a_steps_result_that_was_logged_is_not_made_again_after_a_crash():
    plan = plan_of({"start": ["A"], "A": ["B"], "B": ["end"]})
    shell = FixedShell(plan, ScheduleConfig(), random.Random(0), crash_at=3).run()
    starts = [event.step for event in shell.log if event.kind == "step_started"]
    assert shell.crashes == 1
    # B was under way and begins again; A had finished.
    assert starts == ["A", "B", "B"]
