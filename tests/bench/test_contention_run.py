"""The contention experiment for real, on curves small and short enough for a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agentrt.bench.contention import processes
from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.experiment import Experiment
from agentrt.bench.contention.run import Stopped, run_once
from agentrt.bench.contention.store import ContentionStore
from agentrt.bench.contention.summary import results_json
from agentrt.resources.cgroup import read_layout
from agentrt.sandbox.state import RunState

from .contention_samples import MIB, small_plan, write_curves

pytestmark = pytest.mark.requires_root
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    """Records and temporary files of the test's own, empty again at its end."""
    place = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("AGENTRT_STATE", str(place / "records"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert sorted(path.name for path in place.iterdir()) == []


@pytest.fixture(autouse=True)
def run_ids(monkeypatch):
    """Ids of the runs that the test opens; none of them may leave a cgroup."""
    seen = []
    opened = RunState.open.__func__

    def open_and_note(cls, *args, **kwargs):
        state = opened(cls, *args, **kwargs)
        seen.append(state.run_id)
        return state

    monkeypatch.setattr(RunState, "open", classmethod(open_and_note))
    yield seen
    assert [path for run_id in seen for path in cgroups(run_id)] == []


def cgroups(run_id):
    patterns = (f"agentrt/{run_id}", f"*/agentrt/{run_id}")
    return [path for pattern in patterns for path in Path("/sys/fs/cgroup").glob(pattern)]


def replays_of(marker):
    """Replay processes whose settings lie below ``marker``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"replay_process.py" in words and str(marker).encode() in words:
            found.append(int(path.parent.name))
    return found


class TestArena:
    def test_limits_count_and_go_away(self, run_ids):
        with Arena(["a", "b"], 64 * MIB) as arena:
            place = arena.parent.carrier("memory").path
            limit = place / ("memory.max" if arena.on_v2 else "memory.limit_in_bytes")
            assert int(limit.read_text()) == 64 * MIB
            assert arena.usage() >= arena.usage("a") >= 0
            assert arena.oom_kills("a") == 0
            assert cgroups(run_ids[0])

    def test_a_failure_inside_leaves_nothing(self):
        def fail():
            with Arena(["a"], 64 * MIB) as arena:
                processes.spawn("a", arena.groups["a"].procs, Path("/nothing")).close()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

    def test_freezing_stops_and_thawing_goes_on(self, tmp_path):
        settings = tmp_path / "s.json"
        plan = small_plan("none")
        told = processes.replay_settings(plan.curves["flat"], speed=4.0, scale=0.05)
        settings.write_text(json.dumps(told))
        with Arena(["a"], 200 * MIB) as arena:
            replay = processes.spawn("a", arena.groups["a"].procs, settings)
            processes.wait_ready({"a": replay})
            assert arena.control("a").freeze(True) == ""
            replay.release(time.monotonic())
            time.sleep(0.4)
            assert not replay.done
            assert arena.control("a").freeze(False) == ""
            while not replay.done:
                replay.read(time.monotonic())
            replay.close()
        assert replay.survived


class TestRuns:
    def test_nobody_decides_and_somebody_is_killed(self):
        outcome = run_once(small_plan("none", mib=800), "none", 1)
        assert outcome.survivors < 3
        killed = [role for role in outcome.roles.values() if not role.survived]
        assert all(role.oom_kills for role in killed)
        assert outcome.peak <= 80 * MIB

    def test_one_after_the_other_all_live(self):
        outcome = run_once(small_plan("serialise", mib=950), "serialise", 1)
        assert outcome.survivors == 3
        high = outcome.roles["high"].total
        assert all(outcome.roles[name].waited >= high for name in ("low1", "low2"))

    def test_with_memory_for_all_nothing_stops(self):
        plan = small_plan("none").uncontended()
        outcome = run_once(plan, "uncontended", 1)
        assert outcome.survivors == 3
        assert outcome.roles["high"].peak == pytest.approx(35 * MIB, abs=MIB)

    def test_agentrt_keeps_all_alive_in_too_little_memory(self):
        outcome = run_once(small_plan("agentrt", mib=950), "agentrt", 1)
        assert outcome.survivors == 3
        assert outcome.peak <= 95 * MIB

    def test_a_stop_in_the_middle(self, tmp_path):
        begun = time.monotonic()
        with pytest.raises(Stopped):
            run_once(small_plan("none"), "none", 1, lambda: time.monotonic() > begun + 0.7)

    def test_goes_on_where_it_was_stopped(self, tmp_path):
        plan = small_plan("serialise")
        cells = []

        class View:
            def started(self, policy, run):
                pass

            def finished(self, outcome, reused):
                cells.append((outcome.policy, reused))

        store = ContentionStore(tmp_path, plan.to_json())
        first = Experiment(plan, store, View(), stop=lambda: len(cells) >= 2).run()
        assert [policy for policy, _ in cells] == ["alone:high", "alone:low1"]
        outcomes = Experiment(plan, store, View()).run()
        assert cells[2:4] == [("alone:high", True), ("alone:low1", True)]
        assert len(outcomes) == len(first) + 3
        found = results_json(plan, outcomes, layout=read_layout(), about={})
        assert found["complete"]
        assert found["policies"]["serialise"]["survivors"] == 3


class TestCommand:
    def start(self, tmp_path, own_state, *more):
        names = ("dask-11628", "github3.py-673")
        curves = tmp_path / "curves"
        curves.mkdir()
        write_curves(curves, *names)
        out = tmp_path / "out"
        command = [sys.executable, "-m", "agentrt", "bench", "contention", "--scale", "0.05"]
        options = ["--curves", str(curves), "--out", str(out), "--policies", "serialise", *more]
        env = os.environ | {"TMPDIR": str(own_state), "PYTHONPATH": str(CHECKOUT)}
        pipe = subprocess.PIPE
        return out, subprocess.Popen(
            [*command, *options], stdout=pipe, stderr=pipe, env=env, text=True, cwd=tmp_path
        )

    def test_json_and_report(self, tmp_path, own_state):
        _, process = self.start(tmp_path, own_state, "--runs", "1", "--json", "--speed", "50")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        told = json.loads(out)
        figures = told["policies"]["serialise"]
        assert figures["survivors"] == 3
        for key in ("high_slowdown", "low_slowdown", "total"):
            assert figures[key] > 0
        assert len(figures["runs"]) == 1
        assert Path(told["report"]).read_text().startswith("<!doctype html>")

    def test_interrupting_keeps_what_ended_and_leaves_nothing(self, tmp_path, own_state):
        out, process = self.start(tmp_path, own_state, "--runs", "50", "--speed", "20")
        kept = out / "runs" / "alone_high-1.json"
        deadline = time.monotonic() + 60
        while not kept.exists() or not replays_of(own_state):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "interrupted" in err
        assert (out / "results.json").exists()
        assert replays_of(own_state) == []

    def test_missing_curves_name_the_remedy(self, tmp_path, own_state):
        _, process = self.start(tmp_path, own_state, "--curves", str(tmp_path))
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "--curves DIR" in err
