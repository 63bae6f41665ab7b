"""The append-only log: what it keeps, what it refuses, and that a kill loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agentrt.errors import InvalidRequest
from agentrt.workflows.log import LogError, LogFull, PayloadTooLarge, RunBusy, RunLog
from agentrt.workflows.log_owner import survey, this_process
from agentrt.workflows.schedule import Schedule, ScheduleConfig, fold
from tests.workflows.schedule_sim import plan_of

LINE = plan_of({"start": ["A"], "A": ["B"], "B": ["end"]})
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def log(path):
    with RunLog(path, clock=lambda: 1_800_000_000.25) as log:
        log.create("r1", "queue", "f00d")
        yield log


def finished(step, attempt, *enabled, **more):
    return {
        "attempt": attempt,
        "status": "succeeded",
        "edges": dict.fromkeys(enabled, "enabled"),
        **more,
    }


def a_run(log, run_id="r1"):
    """A step that failed once, one that succeeded, and the end."""
    log.append(run_id, "run_started", None, {"seed": 1})
    log.append(run_id, "step_started", "A", {"attempt": 1})
    log.append(run_id, "step_finished", "A", {"attempt": 1, "status": "failed", "error": "no"})
    log.append(run_id, "step_started", "A", {"attempt": 2})
    log.append(run_id, "step_finished", "A", finished("A", 2, "edge_A_B", result={"n": 1}))
    log.append(run_id, "step_finished", "A", finished("A", 2, "edge_A_B", result={"n": 9}))
    log.append(run_id, "step_started", "B", {"attempt": 1})


def fill(log):
    for _ in range(1000):
        log.append("r1", "tool_called", "B", {"output": "x" * 3000})


# -- events --------------------------------------------------------------------------------------


def test_events_come_back_in_order_with_index_and_time(log):
    first = log.append("r1", "run_started", None, {"seed": 1, "name": "ü"})
    log.append("r1", "step_started", "A", {"attempt": 1})
    assert first.time == "2027-01-15T08:00:00.250000Z"
    assert log.events("r1")[0] == first
    assert [(e.index, e.kind, e.step) for e in log.events("r1", 1)] == [(1, "step_started", "A")]
    assert log.events("r1", 2) == []


def test_each_run_counts_for_itself(log):
    log.create("r2", "disk", parent="r1", fork_step="A")
    log.append("r1", "run_started")
    assert log.append("r2", "run_started").index == 0
    assert [(run.run_id, run.guide, run.parent) for run in log.runs()] == [
        ("r1", "queue", None),
        ("r2", "disk", "r1"),
    ]
    assert log.run("r1").fingerprint == "f00d"


def test_nothing_can_be_changed_or_deleted(log, path):
    log.append("r1", "run_started")
    other = sqlite3.connect(path)
    for statement in (
        "UPDATE events SET kind = 'x'",
        "DELETE FROM events",
        "UPDATE runs SET guide = 'x'",
        "DELETE FROM runs",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
    other.close()


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_data_that_is_not_json_is_refused(log, data):
    with pytest.raises(InvalidRequest, match="is not JSON"):
        log.append("r1", "tool_called", "A", data)
    assert log.events("r1") == []


def test_large_data_is_refused_with_a_remedy(path):
    with RunLog(path, max_bytes=100) as log:
        log.create("r1", "g")
        log.append("r1", "query_run", "A", {"x": "a" * 90})
        with pytest.raises(PayloadTooLarge, match="handle"):
            log.append("r1", "query_run", "A", {"x": "a" * 100})


def test_unknown_and_doubled_runs_are_refused(log):
    for call in (log.events, log.run, log.claim):
        with pytest.raises(InvalidRequest, match="no run 'r9'"):
            call("r9")
    with pytest.raises(InvalidRequest, match="no run 'r9'"):
        log.append("r9", "run_started")
    with pytest.raises(InvalidRequest, match="already"):
        log.create("r1", "queue")


def test_readers_see_the_log_while_it_is_written_and_threads_share_it(log, path):
    def write():
        for _ in range(50):
            log.append("r1", "tool_called")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    with RunLog(path) as reader:
        seen = [len(reader.events("r1")) for _ in range(20)]
    for thread in threads:
        thread.join(30)
    assert seen == sorted(seen)
    assert [event.index for event in log.events("r1")] == list(range(200))


# -- files ---------------------------------------------------------------------------------------


def test_a_file_that_is_no_log_or_of_the_future_is_refused(tmp_path):
    (tmp_path / "text").write_text("This is a text, and rather long, so that it has a header." * 20)
    with pytest.raises(LogError, match="cannot be used"):
        RunLog(tmp_path / "text")
    with pytest.raises(LogError, match="cannot be used"):
        RunLog(tmp_path / "missing" / "runs.db")
    database = sqlite3.connect(tmp_path / "new")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LogError, match="format 99"):
        RunLog(tmp_path / "new")


def test_a_full_disk_is_a_typed_error_and_the_run_goes_on_when_there_is_room(log):
    a_run(log)
    before = log.events("r1")
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LogFull, match="Free some space"):
        fill(log)
    assert issubclass(LogFull, OSError)
    kept = log.events("r1")
    assert kept[: len(before)] == before
    assert [event.index for event in kept] == list(range(len(kept)))
    log._db.execute("PRAGMA max_page_count = 1000000")
    assert log.append("r1", "run_resumed").index == len(kept)
    state = fold(LINE, log.events("r1"))
    assert state.steps["A"].status == "succeeded"
    assert state.steps["B"].status == "waiting"


@pytest.mark.requires_root
def test_a_full_file_system_is_a_typed_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and mount(8) for a small tmpfs")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {made.stderr.decode().strip()}")
    try:
        log = RunLog(disk / "runs.db")
        log.create("r1", "g")
        log.append("r1", "run_started")
        with pytest.raises(LogFull):
            fill(log)
        kept = log.events("r1")
        log.close()
        with RunLog(disk / "runs.db") as again:
            assert again.events("r1") == kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- crashes -------------------------------------------------------------------------------------

WRITER = """
import sys
from agentrt.workflows.log import RunLog
log = RunLog(sys.argv[1])
log.claim("r1")
while True:
    event = log.append("r1", "tool_called", "A", {"pad": "x" * 500})
    print(event.index, flush=True)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_kill_9_loses_nothing_that_append_returned_for(log, path):
    for after in (1, 40, 200):
        writer = start(WRITER, path)
        first = int(writer.stdout.readline())
        last = first
        while last < first + after:
            last = int(writer.stdout.readline())
        with pytest.raises(RunBusy, match=f"process {writer.pid} on .* drives it"):
            log.claim("r1")
        with pytest.raises(RunBusy):
            log.append("r1", "step_started", "A")
        log.append("r1", "gate_answered", "A", {"gate": "g", "answer": "yes"})
        writer.send_signal(signal.SIGKILL)
        returned = [last, *map(int, writer.stdout.read().split())]
        writer.wait(30)
        writer.stdout.close()
        events = log.events("r1")
        assert [event.index for event in events] == list(range(len(events)))
        assert len(events) > returned[-1]
        log.claim("r1")
        log.release("r1")


# -- ownership -----------------------------------------------------------------------------------


def test_two_cannot_drive_one_run(log, path):
    with RunLog(path) as other, log.own("r1"):
        assert log.owner("r1").pid == os.getpid()
        with pytest.raises(RunBusy, match="is taken") as refused:
            other.claim("r1")
        assert refused.value.owner.token == log.owner("r1").token
        log.claim("r1")
    with RunLog(path) as other, other.own("r1"):
        pass
    assert log.owner("r1") is None


def test_closing_gives_the_run_up(log, path):
    other = RunLog(path)
    other.claim("r1")
    other.close()
    other.close()
    log.claim("r1")


def test_an_owner_is_known_by_pid_start_boot_and_host():
    me = this_process()
    assert survey(me) == "alive"
    assert survey(replace(me, started=me.started + 1)) == "dead"
    assert survey(replace(me, pid=2**22 + 1)) == "dead"
    assert survey(replace(me, boot="before")) == "dead"
    assert survey(replace(me, boot="there", host="elsewhere")) == "unknown"
    assert survey(replace(me, namespace="pid:[1]")) == "unknown"


def test_a_zombie_is_dead():
    child = start("")
    stat = Path(f"/proc/{child.pid}/stat")
    for _ in range(1000):
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        threading.Event().wait(0.01)
    begun = int(stat.read_text().rpartition(")")[2].split()[19])
    assert survey(replace(this_process(), pid=child.pid, started=begun)) == "dead"
    child.wait(30)
    child.stdout.close()


def test_an_owner_that_cannot_be_seen_is_only_replaced_by_force(log, path):
    away = replace(this_process(), host="elsewhere", boot="there")
    there = RunLog(path, owner=away)
    there.claim("r1")
    with pytest.raises(RunBusy, match="with force"):
        log.claim("r1")
    log.claim("r1", force=True)
    assert log.owner("r1").host != "elsewhere"
    with RunLog(path) as third, pytest.raises(RunBusy):
        third.claim("r1", force=True)
    there.close()


# -- forks ---------------------------------------------------------------------------------------


def test_a_fork_is_the_run_up_to_the_step_with_another_result(log):
    a_run(log)
    log.append("r1", "run_ended", None, {"status": "cancelled"})
    info = log.fork("r1", "A", {"n": 2}, new_run_id="r2")
    assert (info.parent, info.fork_step, info.fingerprint) == ("r1", "A", "f00d")
    events = log.events("r2")
    assert [event.index for event in events] == list(range(6))
    assert events[:4] == log.events("r1")[:4]
    assert events[4].data == {"from_run": "r1", "from_step": "A"}
    state = fold(LINE, events)
    assert state.steps["A"].result == {"n": 2}
    assert state.steps["B"].status == "waiting"
    schedule = Schedule.restore(LINE, ScheduleConfig(), events, now=0.0)
    commands = schedule.handle(log.append("r2", "run_resumed"), 0.0)
    assert [command.step for command in commands if hasattr(command, "attempt")] == ["B"]


def test_a_fork_can_decide_otherwise(log):
    a_run(log)
    log.fork("r1", "A", None, new_run_id="r2", edges={"edge_A_B": "disabled"})
    state = fold(LINE, log.events("r2"))
    assert state.steps["B"].status == "skipped"


def test_what_cannot_be_forked_is_refused(log):
    log.append("r1", "run_started")
    log.append("r1", "step_started", "A", {"attempt": 1})
    with pytest.raises(InvalidRequest, match="A has not finished"):
        log.fork("r1", "A", None, new_run_id="r2")
    log.append("r1", "step_finished", "A", {"attempt": 1, "status": "failed"})
    with pytest.raises(InvalidRequest, match="Say which of its edges"):
        log.fork("r1", "A", None, new_run_id="r2")
    log.fork("r1", "A", 3, new_run_id="r2", edges={"edge_A_B": "enabled"})
    with pytest.raises(InvalidRequest, match="already"):
        log.fork("r1", "A", 3, new_run_id="r2", edges={"edge_A_B": "enabled"})
    assert len(log.runs()) == 2
