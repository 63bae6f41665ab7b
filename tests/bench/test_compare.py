"""Comparisons: what is written, reused, refused; and what an interruption leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrt.bench.compare import Comparer, check_policies
from agentrt.bench.records import RunRecord
from agentrt.bench.results import Comparison
from agentrt.bench.settings import BenchSettings
from agentrt.bench.store import ResultStore
from agentrt.errors import ConfigError
from tests.bench.builders import small_workload

POLICIES = ["fcfs", "fixed-ttl=2"]


class Watcher:
    """An observer that notes what it is told."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int, bool, bool]] = []

    def started(self, policy, seed):
        self.ran.append((policy, seed))

    def progress(self, state):
        assert state.programs_done <= state.programs

    def finished(self, record, figures, reused):
        self.ended.append((record.policy, record.seed, record.complete, reused))


def compare(
    out: Path, *, policies=POLICIES, seeds=(0, 1), fresh=False, stop=lambda: False, **settings
) -> tuple[Comparison, Watcher]:
    options = {"engine": "simulated", "rate": 1.0, "pool_tokens": 640} | settings
    chosen = BenchSettings(**options)
    workload = small_workload()
    store = ResultStore(out, chosen.to_json(chosen.select(workload)), fresh=fresh)
    watcher = Watcher()
    comparer = Comparer(workload, chosen, policies, seeds, store, watcher, stop)
    comparison = comparer.run()
    store.save_comparison(comparison, comparer.wall_seconds)
    return comparison, watcher


def test_every_policy_and_seed_is_run_on_the_same_arrivals(tmp_path):
    comparison, watcher = compare(tmp_path)
    assert sorted(watcher.ran) == sorted((name, seed) for name in POLICIES for seed in (0, 1))
    assert [(run.policy, run.seed) for run in comparison.runs] == [
        (name, seed) for name in POLICIES for seed in (0, 1)
    ]
    arrivals = {
        (run.policy, run.seed): {row.program: row.arrival for row in run.programs}
        for run in comparison.runs
    }
    assert arrivals["fcfs", 0] == arrivals["fixed-ttl=2", 0] != arrivals["fcfs", 1]
    assert comparison.complete
    per_seed = [comparison.per_seed["fcfs"][seed]["jct_mean"] for seed in ("0", "1")]
    assert comparison.metrics["fcfs"]["jct_mean"] == sum(per_seed) / 2


def test_the_files_say_it_all(tmp_path):
    comparison, _ = compare(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["policies"]) == POLICIES
    assert results["policies"]["fcfs"] == comparison.metrics["fcfs"]
    assert results["policies"]["fcfs"]["complete"] is True
    assert results["settings"]["pool_tokens"] == 640
    assert results["workload"]["programs"] == 4
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {f"{name}-{seed}.json" for name in POLICIES for seed in (0, 1)}
    about = json.loads((tmp_path / "about.json").read_text())
    assert set(about["wall_seconds"]) == {f"{name}-{seed}" for name in POLICIES for seed in (0, 1)}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    compare(tmp_path / "one")
    compare(tmp_path / "two")
    for name in ("results.json", "runs/fcfs-0.json", "runs/fixed-ttl=2-1.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_run_comes_back_from_its_file_as_it_was(tmp_path):
    comparison, _ = compare(tmp_path)
    data = json.loads((tmp_path / "runs" / "fcfs-0.json").read_text())
    data.pop("digest")
    assert RunRecord.from_json(data) == comparison.runs[0]


def test_finished_runs_are_reused_and_said_so(tmp_path):
    compare(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    _, watcher = compare(tmp_path)
    assert watcher.ran == []
    assert all(reused for *_, reused in watcher.ended)
    assert (tmp_path / "results.json").read_bytes() == before
    _, watcher = compare(tmp_path, policies=[*POLICIES, "program-fcfs"])
    assert watcher.ran == [("program-fcfs", 0), ("program-fcfs", 1)]


def test_other_settings_are_refused_until_fresh(tmp_path):
    compare(tmp_path)
    for changed in ({"rate": 2.0}, {"pool_tokens": 1280}, {"limit": 2}, {"max_wait": 5.0}):
        with pytest.raises(ConfigError, match="--fresh"):
            compare(tmp_path, **changed)
    _, watcher = compare(tmp_path, rate=2.0, fresh=True, policies=["fcfs"])
    assert watcher.ran == [("fcfs", 0), ("fcfs", 1)]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"fcfs-0.json", "fcfs-1.json"}


def test_a_damaged_run_is_named(tmp_path):
    compare(tmp_path)
    (tmp_path / "runs" / "fcfs-0.json").write_text("{")
    with pytest.raises(ConfigError, match=r"fcfs-0\.json"):
        compare(tmp_path)


@pytest.mark.parametrize("polls", [1, 3, 40, 120])
def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, polls):
    asked = iter(range(10**6))
    comparison, watcher = compare(tmp_path / "cut", stop=lambda: next(asked) >= polls)
    assert not comparison.complete
    assert len(watcher.ran) < 4 or watcher.ended[-1][2] is False
    whole = [run for run in comparison.runs if run.complete]
    results = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert results["complete"] is False
    assert all(results["policies"][run.policy]["complete"] for run in whole)
    unfinished = {run.policy for run in comparison.runs} - {run.policy for run in whole}
    assert not any(results["policies"][name]["complete"] for name in unfinished)

    resumed, again = compare(tmp_path / "cut")
    assert resumed.complete
    assert len(again.ran) == 4 - len(whole)
    compare(tmp_path / "straight")
    cut, straight = (tmp_path / name / "results.json" for name in ("cut", "straight"))
    assert cut.read_bytes() == straight.read_bytes()


def test_policies_are_checked_before_anything_runs():
    assert check_policies(["fcfs", " fcfs ", "continuum"]) == ["fcfs", "continuum"]
    with pytest.raises(ConfigError, match="program-fcfs"):
        check_policies(["fcfs", "lifo"])
    with pytest.raises(ConfigError, match="No policy"):
        check_policies([""])


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool_tokens": 0},
        {"max_wait": -1.0},
        {"max_wait": float("nan")},
        {"time_scale": -0.5},
        {"engine": "simulated", "model": "x"},
        {"engine": "simulated", "sandbox": "auto"},
    ],
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="--"):
        BenchSettings(**wrong)


def test_a_pool_smaller_than_a_page_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--pool"):
        compare(tmp_path, pool_tokens=8)


def test_a_pool_too_small_for_a_program_fails_that_program_aloud(tmp_path):
    comparison, _ = compare(tmp_path, pool_tokens=160, seeds=(0,))
    outcomes = comparison.metrics["fcfs"]["programs"]
    assert outcomes["failed"] >= 1
    assert sum(outcomes.values()) == 4
