"""`agentrt guide run` as a process that is stopped: Ctrl-C and kill -9, then answer and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from agentrt.workflows.log import RunLog

DEADLINE = 60.0
GUIDE = [sys.executable, "-m", "agentrt", "guide"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def guide(*arguments, cwd):
    """Run a command line to its end."""
    return subprocess.run(
        [*GUIDE, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def waiting(tmp_path):
    """A process whose run waits for an approval, and the run's id."""
    process = subprocess.Popen(
        [*GUIDE, "run", "database_failover", "--incident", "approved"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, wait_for_gate(tmp_path, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE)


def wait_for_gate(directory, process):
    log = directory / "agentrt-guides" / "log.db"
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until and process.poll() is None:
        if log.is_file() and (name := run_that_asks(log)):
            return name
        time.sleep(0.05)
    raise AssertionError(f"no gate was opened: {process.communicate(timeout=DEADLINE)[0]}")


def run_that_asks(path):
    with RunLog(path) as log:
        for info in log.runs():
            if any(event.kind == "gate_opened" for event in log.events(info.run_id)):
                return info.run_id
    return None


def events_of(directory, name):
    with RunLog(directory / "agentrt-guides" / "log.db") as log:
        return log.events(name)


def starts(events):
    return [event.step for event in events if event.kind == "step_started"]


def test_an_answer_from_another_process_lets_the_run_go_on(waiting, tmp_path):
    process, name = waiting
    answered = guide("answer", name, "Step4/approve", "approve", cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, out
    assert "succeeded: The replica was promoted" in out


def test_an_answer_that_is_none_is_refused(waiting, tmp_path):
    _, name = waiting
    wrong = guide("answer", name, "Step4/approve", "perhaps", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "approve" in wrong.stderr
    unknown = guide("answer", name, "Step9/approve", "approve", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "waits for: Step4/approve" in unknown.stderr


def test_ctrl_c_leaves_a_run_that_can_be_answered_and_resumed(waiting, tmp_path):
    process, name = waiting
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, out
    assert f"agentrt guide resume {name}" in out
    listed = json.loads(guide("runs", "--json", cwd=tmp_path).stdout)["runs"]
    assert [(run["status"], run["asks"]) for run in listed] == [("unfinished", ["Step4/approve"])]
    answered = guide("answer", name, "Step4/approve", "approve", cwd=tmp_path)
    assert f"agentrt guide resume {name}" in answered.stdout
    resumed = guide("resume", name, "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["path"] == ["Step1", "Step2", "Step4", "Step5"]
    assert starts(events_of(tmp_path, name)) == ["Step1", "Step2", "Step4", "Step5"]


def test_a_killed_run_is_resumed_without_repeating_what_has_finished(waiting, tmp_path):
    process, name = waiting
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert guide("answer", name, "Step4/approve", "deny", cwd=tmp_path).returncode == 0
    resumed = guide("resume", name, "--json", cwd=tmp_path)
    assert resumed.returncode == 3, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "inconclusive"
    after = events_of(tmp_path, name)
    assert starts(after) == ["Step1", "Step2"]
    replayed = guide("replay", name, cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert "none live" in replayed.stdout


def test_a_run_that_has_ended_is_not_run_again_by_resume(waiting, tmp_path):
    process, name = waiting
    guide("answer", name, "Step4/approve", "deny", cwd=tmp_path)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    before = events_of(tmp_path, name)
    assert guide("resume", name, cwd=tmp_path).returncode == 3
    assert events_of(tmp_path, name) == before
