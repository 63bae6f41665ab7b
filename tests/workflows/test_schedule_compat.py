"""Compatibility mode against an independent model of StepFly's documented scan.

The model is a direct transcription of the documented semantics over plain dictionaries. It shares
nothing with the schedule but the plan's shape.
"""

from __future__ import annotations

import random

import pytest

from agentrt.errors import GuideError
from agentrt.workflows.events import CancelStep, EndRun, StartStep
from agentrt.workflows.guide import END, START, Edge, Guide, Step
from agentrt.workflows.schedule import Schedule, ScheduleConfig, fold
from agentrt.workflows.schedule_graph import Graph
from tests.workflows.schedule_sim import Event, iso, plan_of, random_edges, shuffled


def model(nodes, edges, decisions, failures, durations, workers):
    """The fire, skip, finish and end order of a run.

    Args:
        nodes: names in file order, without start.
        edges: list of (source, target).
    """
    status = dict.fromkeys(nodes, "pending")
    status[START] = "finished"
    state = {pair: "enabled" if pair[0] == START else "pending" for pair in edges}
    left: dict[str, int] = {}
    trace = []
    for _tick in range(10_000):
        # Results that have come in, in file order.
        for node in nodes:
            if status[node] != "running":
                continue
            left[node] -= 1
            if left[node] > 0:
                continue
            failed = node in failures
            status[node] = "failed" if failed else "finished"
            trace.append(("failed" if failed else "finished", node))
            for pair in edges:
                if pair[0] == node:
                    state[pair] = "disabled" if failed else decisions[pair]
        # Done?
        if status[END] == "finished":
            trace += sorted(("killed", node) for node in nodes if status[node] == "running")
            return trace, "succeeded"
        unfinished = [n for n in nodes if status[n] in ("pending", "running")]
        if not unfinished and "pending" not in state.values():
            return trace, "failed" if "failed" in status.values() else "inconclusive"
        # End first: any input enabled, whatever the others are; nothing else in that tick.
        into_end = [state[pair] for pair in edges if pair[1] == END]
        if status[END] == "pending" and "enabled" in into_end:
            status[END] = "running"
            left[END] = durations[END]
            trace.append(("fire", END))
            continue
        # The scan, in file order, with immediate effect.
        for node in nodes:
            if status[node] != "pending":
                continue
            inputs = [state[pair] for pair in edges if pair[1] == node]
            if "pending" in inputs:
                continue
            if "enabled" not in inputs:
                status[node] = "skipped"
                trace.append(("skip", node))
                for pair in edges:
                    if pair[0] == node:
                        state[pair] = "disabled"
            elif node != END:
                running = [n for n in nodes if status[n] == "running" and n != END]
                if len(running) < workers:
                    status[node] = "running"
                    left[node] = durations[node]
                    trace.append(("fire", node))
    raise AssertionError("the model does not end")


def ours(plan, decisions, failures, durations, workers):
    """The same order from the schedule, driven tick by tick."""
    schedule = Schedule(plan, ScheduleConfig(workers=workers, compat=True))
    nodes = [n for n in (*Graph(plan).policies,) if n != START]
    log, trace, left = [], [], {}
    out = {n: plan.outgoing(n) for n in nodes}

    def append(tick, kind, step=None, **data):
        event = Event(len(log), iso(tick), kind, step, data)
        log.append(event)
        return schedule.handle(event, float(tick))

    append(0, "run_started", compat=True)
    for tick in range(10_000):
        commands = []
        for node in nodes:
            if node not in left:
                continue
            left[node] -= 1
            if left[node] <= 0:
                del left[node]
                failed = node in failures
                trace.append(("failed" if failed else "finished", node))
                edges = {} if failed else {e.name: decisions[e.source, e.target] for e in out[node]}
                status = "failed" if failed else "succeeded"
                commands += append(
                    tick, "step_finished", node, attempt=1, status=status, edges=edges
                )
        commands += schedule.tick(float(tick))
        for fact in schedule.take_facts():
            assert fact.kind == "step_skipped"
            trace.append((tick, "skip", fact.step))
            append(tick, fact.kind, fact.step, **fact.data)
        for command in commands:
            match command:
                case StartStep(step):
                    trace.append((tick, "fire", step))
                    commands += append(tick, "step_started", step, attempt=1)
                    left[step] = durations[step]
                case CancelStep(step):
                    trace.append(("killed", step))
                    commands += append(tick, "step_cancelled", step, attempt=1, reason="end")
                    del left[step]
                case EndRun(status):
                    append(tick, "run_ended", status=status)
                    assert fold(plan, log) == schedule.state
                    schedule.check_integrity()
                    return in_file_order(trace, nodes), status
    raise AssertionError("the schedule does not end")


def in_file_order(trace, nodes):
    """Merge the fires and skips of one tick, which one scan makes in file order."""
    rank = {node: index for index, node in enumerate(nodes)}
    merged, scan = [], []
    for item in [*trace, None]:
        if item is not None and len(item) == 3 and (not scan or scan[-1][0] == item[0]):
            scan.append(item)
            continue
        merged += [entry[1:] for entry in sorted(scan, key=lambda entry: rank[entry[2]])]
        scan = [item] if item is not None and len(item) == 3 else []
        if item is not None and len(item) == 2:
            merged.append(item)
    # What end cuts off is stopped at one moment, in no order.
    kills = sorted(item for item in merged if item[0] == "killed")
    return [item for item in merged if item[0] != "killed"] + kills


def random_case(seed):
    rng = random.Random(seed)
    raw = shuffled(rng, random_edges(rng, rng.randint(1, 14), rng.choice([0.1, 0.25, 0.5])))
    plan = plan_of(raw)
    pairs = [(edge.source, edge.target) for edge in plan.edges]
    nodes = [n for n in raw if n != START] + [END]
    enabled = rng.choice([0.3, 0.6, 0.9])
    decisions = {p: "enabled" if rng.random() < enabled else "disabled" for p in pairs}
    failures = {n for n in nodes if n != END and rng.random() < 0.08}
    durations = {n: rng.randint(1, 6) for n in nodes}
    return plan, nodes, pairs, decisions, failures, durations, rng.randint(1, 5)


def test_fire_skip_and_end_order_equal_the_model_on_1000_random_dags():
    seen = set()
    for seed in range(1_000):
        plan, nodes, pairs, decisions, failures, durations, workers = random_case(seed)
        expected = model(nodes, pairs, decisions, failures, durations, workers)
        assert ours(plan, decisions, failures, durations, workers) == expected, seed
        seen |= {kind for kind, _ in expected[0]} | {expected[1]}
    kinds = {"fire", "skip", "finished", "failed", "killed", "succeeded", "inconclusive"}
    assert seen == kinds


def test_end_takes_no_worker_and_starts_alone_in_its_tick():
    plan = plan_of({"start": ["A", "B"], "A": ["end", "C"], "B": ["end"], "C": ["end"]})
    decisions = {(e.source, e.target): "enabled" for e in plan.edges}
    durations = {"A": 1, "B": 9, "C": 9, "end": 2}
    trace, status = ours(plan, decisions, set(), durations, workers=2)
    # C is ready when end starts, but begins one tick later, while end still runs.
    assert trace == [
        ("fire", "A"),
        ("fire", "B"),
        ("finished", "A"),
        ("fire", "end"),
        ("fire", "C"),
        ("finished", "end"),
        ("killed", "B"),
        ("killed", "C"),
    ]
    assert status == "succeeded"


def test_a_skip_reaches_earlier_steps_one_tick_later():
    plan = plan_of({"start": ["B"], "A": ["end"], "B": ["C"], "C": ["A", "D"], "D": ["end"]})
    schedule = Schedule(plan, ScheduleConfig(compat=True))
    schedule.handle(Event(0, iso(0), "run_started", None, {"compat": True}), 0.0)
    schedule.tick(0.0)
    schedule.handle(Event(1, iso(0), "step_started", "B", {"attempt": 1}), 0.0)
    data = {"attempt": 1, "status": "succeeded", "edges": {"edge_B_C": "disabled"}}
    schedule.handle(Event(2, iso(1), "step_finished", "B", data), 1.0)
    schedule.tick(1.0)
    assert [fact.step for fact in schedule.take_facts()] == ["C", "D"]
    schedule.tick(2.0)
    assert [fact.step for fact in schedule.take_facts()] == ["A", "end"]


def test_a_step_without_an_incoming_edge_is_refused():
    edges = (Edge("edge_start_A", START, "A"), Edge("edge_A_end", "A", END))
    guide = Guide("g", "G", (Step("A", "A", edges=edges[1:]), Step("B", "B")))

    class Bare:
        def __init__(self):
            self.guide, self.edges = guide, edges

    with pytest.raises(GuideError, match="No edge leads to B"):
        Schedule(Bare(), ScheduleConfig(compat=True))
    assert Schedule(Bare()).state.steps["B"].status == "pending"
