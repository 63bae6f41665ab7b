"""A run is killed (SIGKILL) right after every one of its events, and resumed each time.

This file is also the program that is killed: ``python test_crash.py FOLDER`` imports everything
once and forks a child per experiment, which is quick and leaves no threads behind.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from agentrt.workflows.data import DataStore
from agentrt.workflows.executor import StepExecutor
from agentrt.workflows.log import RunLog, fold
from agentrt.workflows.models import ScriptedModel
from agentrt.workflows.parse import load_guide
from agentrt.workflows.plan import make_plan
from agentrt.workflows.queries import QueryTemplates
from agentrt.workflows.run import GuideRunner

RUN = "the-run"
LONGEST = 200
"""Events that the run has at most."""
WAIT = 60

GUIDE = """# Queues are long

<!-- guide: queries=queries.toml -->

## Parameters

- `limit` (integer): how long is too long

## Step 1 - Measure

### Instructions

Read the depths.

### Queries

- `depths`

### Connections

- if `max(depths.depth) > limit`: Step 2
- if `max(depths.depth) > limit`: Step 3
- otherwise: Step 5

## Step 2 - Look at every queue

### Instructions

One by one.

### Queries

- `one` with queue=item

### Connections

- Step 4

### Policy

- for each: `depths.queue`

## Step 3 - Restart the consumer

### Instructions

Restart it.

### Connections

- if the restart helped: Step 4
- otherwise: end

### Policy

- idempotent: no
- gate: approve (default deny, after 10m)

## Step 4 - Conclude

### Instructions

Write it down.

### Connections

- end

### Policy

- join: all

<!-- Reaches A Final Conclusion: The consumer was stuck. -->

## Step 5 - Conclude that all is well

### Instructions

Close the alert.

### Connections

- end

<!-- Reaches A Final Conclusion: All is well. -->
"""

QUERIES = """
[source.telemetry]
type = "sqlite"
path = "telemetry.db"

[query.depths]
source = "telemetry"
sql = "SELECT queue, depth FROM depth ORDER BY queue"

[query.one]
source = "telemetry"
sql = "SELECT depth FROM depth WHERE queue = :queue"
[query.one.parameters]
queue = {type = "string"}
"""


class Counting:
    """Notes each attempt in a file, as a side effect that nothing takes back."""

    def __init__(self, inner, file: Path) -> None:
        self._inner = inner
        self._file = file

    @property
    def name(self) -> str:
        return self._inner.name

    async def run(self, step, edges, context):
        with self._file.open("a") as file:
            file.write(f"{step.id}\n")
        await anyio.lowlevel.checkpoint()
        return await self._inner.run(step, edges, context)


class Approving:
    """Says yes to approvals and to repeats."""

    async def ask(self, question) -> str | None:
        return "approve"


def prepare(folder: Path) -> None:
    """Write the guide, its queries and the telemetry."""
    (folder / "guide.md").write_text(GUIDE)
    (folder / "queries.toml").write_text(QUERIES)
    with sqlite3.connect(folder / "telemetry.db") as db:
        db.execute("CREATE TABLE depth (queue TEXT, depth INTEGER)")
        db.executemany("INSERT INTO depth VALUES (?, ?)", [("a", 10), ("b", 9000)])
    db.close()


async def carry(folder: Path, place: Path, how: str, kill_at: int | None) -> str:
    """Run or resume in ``place``; die right after the event ``kill_at``."""

    def after(event) -> None:
        if event.index == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    guide = load_guide(folder / "guide.md")
    with RunLog(place / "runs.db") as log, DataStore(place / "data") as store:
        inner = StepExecutor(
            guide,
            templates=QueryTemplates.load(folder / "queries.toml"),
            store=store,
            model=ScriptedModel(answer, tokens=7),
        )
        runner = GuideRunner(
            make_plan(guide),
            log=log,
            executor=Counting(inner, place / "effects.txt"),
            person=Approving(),
            on_event=after,
        )
        if how == "replay":
            return f"{(await runner.replay(RUN)).attempts} attempts"
        act = runner.run({"limit": "100"}, run_id=RUN) if how == "run" else runner.resume(RUN)
        return (await act).status


def answer(messages, choices, context) -> str:
    return f"Findings of {context}." if choices is None else "enabled"


def child(folder: Path, place: Path, how: str, kill_at: int | None) -> int:
    """Do it in a forked child; return its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if anyio.run(carry, folder, place, how, kill_at) else 2
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def effects(place: Path) -> list[str]:
    file = place / "effects.txt"
    return file.read_text().split() if file.exists() else []


def experiments(folder: Path) -> None:
    """Do all experiments and print one JSON line on each."""
    for kill_at in [None, *range(LONGEST)]:
        place = folder / f"kill-{kill_at}"
        place.mkdir()
        report = {"kill_at": kill_at, "run": child(folder, place, "run", kill_at)}
        report["effects_before"] = effects(place)
        if report["run"]:
            # The first resume is killed as well, two events on; the second must be left alone.
            report["killed_resume"] = child(folder, place, "resume", kill_at + 2)
            report["resume"] = child(folder, place, "resume", None)
        report["again"] = child(folder, place, "resume", None)
        report["effects"] = effects(place)
        # Last, as a replay goes through the executor again: its calls are the recorded ones.
        report["replay"] = child(folder, place, "replay", None)
        print(json.dumps(report), flush=True)  # noqa: T201 - a program for this test
        if kill_at is not None and not report["run"]:
            return  # the run has no event of this index: every one was tried


@functools.cache
def reports(folder: Path) -> list[dict]:
    prepare(folder)
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("crash")


def read(folder: Path, kill_at: int | None):
    with RunLog(folder / f"kill-{kill_at}" / "runs.db") as log:
        events = log.events(RUN)
    return events, fold(make_plan(load_guide(folder / "guide.md")), events)


def gist(state) -> dict:
    """What two runs of the same guide agree in, however often they were interrupted."""
    return {
        "status": state.status,
        "steps": state.statuses(),
        "edges": state.edges,
        "results": {name: step.result for name, step in state.steps.items()},
        "conclusions": state.conclusions,
    }


def test_every_event_was_killed_at(folder) -> None:
    found = reports(folder)
    events, _ = read(folder, None)
    killed = [r["kill_at"] for r in found if os.WIFSIGNALED(r["run"])]
    assert killed == list(range(len(killed)))
    # The order of events may differ a little between runs, not their number.
    assert len(killed) == len(events) > 25


def test_each_resumed_run_comes_to_what_the_uninterrupted_one_came_to(folder) -> None:
    events, whole = read(folder, None)
    assert whole.status == "succeeded"
    for report in reports(folder)[1:]:
        assert report.get("resume", 0) == report["again"] == report["replay"] == 0, report
        events, state = read(folder, report["kill_at"])
        assert gist(state) == gist(whole), report
        assert [e.index for e in events] == list(range(len(events)))
        assert sum(e.kind == "run_ended" for e in events) == 1


def test_no_finished_step_ran_twice(folder) -> None:
    for report in reports(folder):
        events, _ = read(folder, report["kill_at"])
        finished: set[str] = set()
        for event in events:
            if event.kind == "step_started":
                assert event.step not in finished, report
            elif event.kind == "step_finished" and event.data["status"] == "succeeded":
                finished.add(event.step)
        started = [event.step for event in events if event.kind == "step_started"]
        for name in set(report["effects"]):
            assert report["effects"].count(name) <= started.count(name), report


def test_a_step_that_must_not_run_twice_was_asked_about(folder) -> None:
    asked = 0
    for report in reports(folder):
        events, _ = read(folder, report["kill_at"])
        starts = sum(e.kind == "step_started" and e.step == "Step3" for e in events)
        repeats = [e for e in events if e.data.get("gate", "").startswith("Step3/repeat")]
        answers = [e for e in repeats if e.kind == "gate_answered"]
        assert starts - 1 == len(answers), report
        asked += bool(answers)
    assert asked >= 3


def test_an_ended_run_is_not_touched_by_another_resume(folder) -> None:
    whole = next(report for report in reports(folder) if report["kill_at"] is None)
    assert whole["effects_before"] == whole["effects"]


if __name__ == "__main__":
    experiments(Path(sys.argv[1]))
