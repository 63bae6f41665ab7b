"""Grids of pools and rates, runs side by side, capacities: as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agentrt.scheduling import registry
from agentrt.scheduling.fixed_ttl import fixed_ttl
from agentrt.scheduling.policy import Listener
from tests.bench.builders import small_workload, write_workload_file
from tests.bench.test_cli_bench import SIMULATED, call


@pytest.fixture
def tiny(tmp_path):
    return str(write_workload_file(tmp_path / "tiny.jsonl", small_workload()))


GRID = ("--engine", "simulated", "--policies", "fcfs,fixed-ttl=2", "--seeds", "2", "--quiet")


def test_a_grid_has_a_directory_a_cell_and_a_table_of_all(monkeypatch, capsys, tmp_path, tiny):
    out = tmp_path / "out"
    cells = ("--pools", "640,1280", "--rates", "1,2", "--out", str(out))
    assert call(monkeypatch, "bench", "compare", tiny, *GRID, *cells, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    names = [f"pool-{pool}-rate-{rate}" for pool in (640, 1280) for rate in (1, 2)]
    assert list(told["cells"]) == names
    assert told["complete"] is True
    assert all({"cell", "policy", "ratio"} <= row.keys() for row in told["losing_cells"])
    for name in names:
        found = json.loads((out / "cells" / name / "results.json").read_text())
        assert told["cells"][name]["policies"] == found["policies"]
        assert (out / "cells" / name / "report.html").exists()
    assert "pool-640-rate-1" in (out / "report.html").read_text()
    before = (out / "grid.json").read_bytes()
    assert call(monkeypatch, "bench", "compare", tiny, *GRID, *cells) == 0
    assert (out / "grid.json").read_bytes() == before
    assert "pool-1280-rate-2" in capsys.readouterr().out


def test_side_by_side_or_not_the_bytes_are_the_same(monkeypatch, tmp_path, tiny):
    for jobs in ("1", "2"):
        options = ("--rate", "1", "--pool", "640", "--jobs", jobs, "--out", str(tmp_path / jobs))
        assert call(monkeypatch, "bench", "compare", tiny, *GRID, *options) == 0
    for name in ("results.json", "runs/fcfs-0.json", "runs/fixed-ttl=2-1.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_step_times_are_kept_apart_from_the_results(monkeypatch, tmp_path, tiny):
    options = ("--rate", "1", "--pool", "640")
    for extra in ((), ("--step-times",)):
        where = ("--out", str(tmp_path / f"out{len(extra)}"))
        assert call(monkeypatch, "bench", "compare", tiny, *GRID, *options, *where, *extra) == 0
    plain, timed = (tmp_path / name for name in ("out0", "out1"))
    assert (plain / "results.json").read_bytes() == (timed / "results.json").read_bytes()
    about = json.loads((timed / "about.json").read_text())
    steps = about["scheduler_step_seconds"]["fcfs-0"]
    assert steps["steps"] > 0
    assert 0 < steps["mean"] <= steps["p99"] <= steps["max"]
    assert "scheduler_step_seconds" not in json.loads((plain / "about.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "live", "--jobs", "2"), "simulated engine"),
        (("--engine", "live", "--step-times"), "simulated engine"),
        (("--engine", "live", "--host-pool", "64"), "--host-pool"),
        (("--engine", "simulated", "--pool", "64", "--pools", "64"), "Both --pool"),
    ],
)
def test_what_only_the_simulated_engine_can_do_is_refused_live(
    monkeypatch, capsys, tmp_path, tiny, options, said
):
    where = ("--policies", "fcfs", "--out", str(tmp_path / "out"))
    assert call(monkeypatch, "bench", "compare", tiny, *where, *options) == 2
    assert said in capsys.readouterr().err


def test_capacity_as_a_user_types_it(monkeypatch, capsys, tmp_path, tiny):
    out = tmp_path / "out"
    base = ("--policies", "fcfs,fixed-ttl=2", "--pools", "400,640", "--slowdown", "1.02")
    more = ("--seeds", "1", "--resolution", "2", "--out", str(out))
    assert call(monkeypatch, "bench", "capacity", tiny, *base, *more) == 0
    captured = capsys.readouterr()
    assert "programs/s" in captured.out
    assert "fcfs" in captured.err
    told = json.loads((out / "capacity.json").read_text())
    assert list(told["pools"]) == ["400", "640"]
    assert told["pools"]["400"]["fcfs"]["to_fcfs"] in (1.0, None)
    assert "Capacity" in (out / "capacity.html").read_text()
    assert call(monkeypatch, "bench", "capacity", tiny, *base, *more, "--json", "--quiet") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["pools"] == told["pools"]
    assert call(monkeypatch, "bench", "capacity", tiny, *base, *more, "--slowdown", "1") == 2
    assert "--slowdown" in capsys.readouterr().err


def test_oracles_are_told_the_future_and_distances_are_printed(monkeypatch, capsys, tmp_path, tiny):
    returns = []

    class Watch(Listener):
        def __init__(self, foresight):
            self.foresight = foresight

        def ended(self, turn, reason, now):
            returns.append(self.foresight.remaining_seconds(turn.program_id))

    def oracle(argument, around):
        made = fixed_ttl("30", around)
        return replace(made, listeners=(*made.listeners, Watch(around.foresight)))

    for name in ("belady", "true-ttl"):
        monkeypatch.setitem(registry.BUILTIN, name, oracle)
    options = ("--rate", "1", "--pool", "640", "--oracle", "--out", str(tmp_path / "out"))
    assert call(monkeypatch, "bench", "compare", tiny, *GRID, *options) == 0
    assert returns
    assert max(returns) > 0
    assert "time to belady" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["oracle_distance"]["belady"]["true-ttl"]["jct_mean"] == 1.0
    assert "Distance to the oracles" in (tmp_path / "out" / "report.html").read_text()
    live = ("--policies", "belady", "--engine", "live", "--out", str(tmp_path / "live"))
    assert call(monkeypatch, "bench", "compare", tiny, *live) == 2
    assert "--engine simulated" in capsys.readouterr().err


def test_a_drawn_workload_is_named_like_a_file(monkeypatch, capsys, tmp_path):
    options = ("--rate", "1", "--pool", "64000", "--seeds", "1", "--deadline", "1.5", "--json")
    name = "synthetic:subagents?programs=2&turns=3"
    where = ("--out", str(tmp_path / "out"))
    assert call(monkeypatch, "bench", "compare", name, *GRID[:4], "--quiet", *options, *where) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["workload"]["source"] == name
    assert 0 <= told["policies"]["fcfs"]["deadlines_met"] <= 1
    assert call(monkeypatch, "bench", "compare", "synthetic:nothing", *GRID) == 2
    assert "ten-tenants" in capsys.readouterr().err


def test_many_policies_are_rows(monkeypatch, capsys, tmp_path, tiny):
    base = ("bench", "compare", tiny, *SIMULATED, "--policies", "fixed-ttl,fcfs,plas", "--seeds")
    where = ("--quiet", "--out", str(tmp_path / "out"))
    assert call(monkeypatch, *base, "2", *where) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if line.startswith(("fixed-ttl=", "fcfs", "plas"))]
    assert len(named) == 8
    assert all(line.count(" s") + line.count(" ms") >= 3 for line in named)
