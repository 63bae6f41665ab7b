"""The parallel guides in virtual time: five workers against one, and against the critical path."""

from __future__ import annotations

import pytest

from agentrt.workflows.guides import open_guide, shipped_guides
from agentrt.workflows.guides.cases import case_files, load_case
from agentrt.workflows.plan import make_plan
from agentrt.workflows.simulate import edges_on_path, path_times, simulate

ALL = [(name, file.stem) for name, path in shipped_guides().items() for file in case_files(path)]
PARALLEL = [
    (name, case)
    for name, case in ALL
    if name in ("latency_spike", "checkout_outage") and case not in ("not_slow", "no_outage")
]


def simulated(name, case, workers):
    path = shipped_guides()[name]
    plan, incident = (
        make_plan(open_guide(path)),
        load_case(path.parent / "incidents" / f"{case}.toml"),
    )
    expected = incident.expected
    return simulate(
        plan,
        path_times(expected.path, incident.times),
        edges_on_path(plan, expected.path),
        workers=workers,
        answers=incident.people,
    )


def longest_way(name, case):
    """The critical path of the steps that the run takes, by the plan's own arithmetic."""
    path = shipped_guides()[name]
    plan, incident = (
        make_plan(open_guide(path)),
        load_case(path.parent / "incidents" / f"{case}.toml"),
    )
    times = dict.fromkeys(plan.steps, 0.0) | path_times(incident.expected.path, incident.times)
    return plan.critical_path(times)[1]


@pytest.mark.parametrize(("name", "case"), PARALLEL)
def test_five_workers_take_at_most_half_the_time_of_one(name, case):
    one, five = simulated(name, case, 1), simulated(name, case, 5)
    assert five.seconds <= 0.5 * one.seconds
    assert sorted(five.order) == sorted(one.order)


@pytest.mark.parametrize(("name", "case"), PARALLEL)
def test_five_workers_are_within_a_twentieth_of_the_critical_path(name, case):
    least = longest_way(name, case)
    assert least <= simulated(name, case, 5).seconds <= 1.05 * least


@pytest.mark.parametrize(("name", "case"), ALL)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_schedule_takes_the_expected_path_whatever_the_workers(name, case, workers):
    path = shipped_guides()[name]
    expected = load_case(path.parent / "incidents" / f"{case}.toml").expected
    found = simulated(name, case, workers)
    assert sorted(found.order) == sorted(expected.path)
    assert found.status == expected.status


def test_one_worker_takes_the_sum_of_all_times():
    path = shipped_guides()["latency_spike"]
    times = load_case(path.parent / "incidents" / "bad_deploy.toml").times
    assert simulated("latency_spike", "bad_deploy", 1).seconds == sum(times.values())
