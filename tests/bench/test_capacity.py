"""The search for the highest served rate: its steps, its early ends, what it keeps."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.capacity import CapacityGoal, CapacitySearch, search_rate
from agentrt.bench.capacity_report import CapacityTable
from agentrt.bench.isolated import isolated_seconds
from agentrt.bench.jobs import open_jobs
from agentrt.bench.metrics import percentile
from agentrt.bench.probes import Probe, ProbeStore, probe
from agentrt.bench.records import RunRecord
from agentrt.bench.settings import BenchSettings
from agentrt.bench.simulated import simulate
from agentrt.bench.watch import FAILED
from agentrt.errors import ConfigError
from agentrt.simulation.cost import load_cost
from tests.bench.builders import small_workload

POOL = 400
WORKLOAD = small_workload(count=6, turns=3)
ISOLATED = isolated_seconds(WORKLOAD.programs, load_cost("reference-8b"))
SETTINGS = BenchSettings(engine="simulated", pool_tokens=POOL)
RANGE = {"resolution": 8.0, "lowest": 2.0, "highest": 66.0}
GOAL = CapacityGoal(slowdown=1.1, seeds=(0, 1), **RANGE)


def follow(search, served):
    """Drive a search by a rule; return its end and the rates it asked for."""
    asked = [next(search)]
    while True:
        try:
            asked.append(search.send(served(asked[-1])))
        except StopIteration as end:
            return end.value, asked


@given(st.floats(0.0005, 0.5), st.floats(0.0001, 0.01))
def test_a_search_ends_within_its_resolution(limit, resolution):
    (rate, above), asked = follow(search_rate(resolution), lambda one: one <= limit)
    assert rate <= limit < above
    assert above - rate <= resolution
    assert len(asked) < 75


def test_a_search_ends_where_everything_or_nothing_is_served():
    (rate, above), asked = follow(search_rate(0.001), lambda _: True)
    assert above is None
    assert rate == max(asked)
    (rate, above), asked = follow(search_rate(0.001), lambda _: False)
    assert rate == 0.0
    assert above == min(asked)


def test_the_rates_lie_on_the_published_grid():
    _, asked = follow(search_rate(0.0005), lambda rate: rate <= 0.0076)
    steps = [(rate - 0.002) / (0.058 / 128) for rate in asked]
    assert all(step == pytest.approx(round(step)) for step in steps)


def whole_p90(rate, seed, policy="fcfs"):
    settings = BenchSettings(engine="simulated", pool_tokens=POOL, rate=rate)
    record = RunRecord(policy, seed, "simulated", POOL, "tiny")
    simulate(draw_arrivals(WORKLOAD.programs, rate, seed), record, settings)
    slowdowns = [(row.finished - row.arrival) / ISOLATED[row.program] for row in record.programs]
    return percentile(slowdowns, 0.9)


@pytest.mark.parametrize("rate", [0.5, 4.0, 40.0])
def test_a_run_that_ends_early_never_claims_more_than_the_whole_run(rate):
    settings = BenchSettings(engine="simulated", pool_tokens=POOL, rate=rate)
    whole = probe(WORKLOAD, ISOLATED, settings, "fcfs", 3, math.inf, lambda: False)
    assert whole.whole
    assert whole.p90 == whole_p90(rate, 3)
    for limit in (0.5, 1.0, whole.p90 * 0.99, whole.p90):
        early = probe(WORKLOAD, ISOLATED, settings, "fcfs", 3, limit, lambda: False)
        assert early.p90 <= whole.p90
        assert early.whole or early.p90 > limit


def test_a_failed_program_is_slower_than_any_bound():
    settings = BenchSettings(engine="simulated", pool_tokens=160, rate=1.0)
    found = probe(WORKLOAD, ISOLATED, settings, "fcfs", 0, math.inf, lambda: False)
    assert found.failed >= 1
    assert found.p90 == FAILED


def search(tmp_path, *, jobs=1, goal=GOAL, forget=(), on_rate=lambda *_: None, stop=lambda: False):
    store = ProbeStore(tmp_path, SETTINGS.to_json(WORKLOAD), forget)
    made = CapacitySearch(WORKLOAD, ISOLATED, SETTINGS, goal, store, on_rate=on_rate, stop=stop)
    with open_jobs(jobs, stop) as room:
        return made.run(["fcfs", "fixed-ttl=2"], room)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A search's directory and what it found."""
    where = tmp_path_factory.mktemp("capacity")
    return where, search(where)


def test_what_is_found_is_what_whole_runs_say(kept):
    for policy, one in kept[1].items():
        for rate, good in ((one.rate, True), (one.next_rate, False)):
            mean = sum(whole_p90(rate, seed, policy) for seed in GOAL.seeds) / len(GOAL.seeds)
            assert (mean <= GOAL.slowdown) is good
        assert one.next_rate - one.rate <= GOAL.resolution
        assert one.slowdown <= GOAL.slowdown


def test_runs_are_kept_and_counted_for_another_goal_only_where_they_decide(kept, tmp_path):
    shutil.copytree(kept[0], tmp_path, dirs_exist_ok=True)
    first = kept[1]
    before = {path: path.read_text() for path in (tmp_path / "probes").iterdir()}
    assert search(tmp_path) == first
    assert {path: path.read_text() for path in (tmp_path / "probes").iterdir()} == before

    looser = CapacityGoal(slowdown=1.13, seeds=(0, 1), **RANGE)
    again = search(tmp_path, goal=looser)
    fresh = search(tmp_path / "fresh", goal=looser)
    assert again == fresh
    assert all(again[name].rate >= first[name].rate for name in first)

    search(tmp_path, forget=["fcfs"])
    others = [path for path in before if path.name.startswith("fixed-ttl=2.")]
    assert all(path.read_text().startswith(before[path]) for path in others)


def test_processes_find_the_same(kept, tmp_path):
    assert search(tmp_path, jobs=2) == kept[1]


def test_a_stopped_search_says_nothing_and_goes_on_later(kept, tmp_path):
    decided = []
    found = search(
        tmp_path, on_rate=lambda *told: decided.append(told), stop=lambda: len(decided) >= 3
    )
    assert "fixed-ttl=2" not in found
    assert search(tmp_path) == kept[1]


def test_a_damaged_file_is_named(tmp_path):
    ProbeStore(tmp_path, SETTINGS.to_json(WORKLOAD)).add(Probe("fcfs", 1.0, 0, 1.0, 1.0, True))
    path = next((tmp_path / "probes").glob("fcfs.*"))
    path.write_text('{"rate": 1}\n')
    with pytest.raises(ConfigError, match="--fresh"):
        search(tmp_path)


def test_the_table_has_ratios_to_fcfs_and_to_the_best_fixed_ttl(kept):
    table = CapacityTable(WORKLOAD.facts(), GOAL, ["fcfs", "fixed-ttl=2"])
    table.add(SETTINGS.to_json(WORKLOAD), POOL, kept[1])
    told = table.to_json()
    rows = told["pools"][str(POOL)]
    assert rows["fcfs"]["to_fcfs"] == 1.0
    assert rows["fixed-ttl=2"]["to_best_fixed_ttl"] == 1.0
    assert rows["fixed-ttl=2"]["to_fcfs"] == rows["fixed-ttl=2"]["rate"] / rows["fcfs"]["rate"]
    assert "pool_tokens" not in told["settings"]
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    "wrong", [{"slowdown": 1.0}, {"resolution": 0.0}, {"seeds": ()}, {"slowdown": math.nan}]
)
def test_senseless_goals_are_refused(wrong):
    with pytest.raises(ConfigError, match="--"):
        CapacityGoal(**wrong)
