"""Playing recordings on a runtime: at once, judged, recorded, and cancelled."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.records import RunRecord
from agentrt.demo.recording import Recording, read_recordings
from agentrt.demo.run import Demo, EventLog, stagger
from agentrt.demo.summary import headline, summarise, write_json
from agentrt.errors import BackendUnavailable, SandboxError
from tests.demo.fakes import FakeRuntime


def shipped(*names: str) -> tuple[Recording, ...]:
    return read_recordings(only=names)


def without_edits(recording: Recording) -> Recording:
    turns = tuple(
        turn
        for number, turn in enumerate(recording.turns)
        if number == 0 or not turn.tools or turn.tools[0].kind != "edit"
    )
    return replace(recording, program=replace(recording.program, turns=turns))


def played(demo: Demo, runtime: FakeRuntime) -> RunRecord:
    async def run() -> None:
        with anyio.fail_after(100):
            await demo.skip_what_cannot_run(runtime)
            await demo.play(runtime)

    anyio.run(run)
    return demo.record("fixed-ttl=30", 1600)


@pytest.fixture
def log():
    return EventLog()


def test_resolved_and_recorded(log):
    runtime = FakeRuntime(log)
    said: list[str] = []
    recordings = shipped("page-window", "backup-rotate")
    demo = Demo(recordings, log, observer=lambda row, text: said.append(f"{row.name} {text}"))
    record = played(demo, runtime)

    assert {row.program: row.outcome for row in record.programs} == {
        "page-window": "resolved",
        "backup-rotate": "resolved",
    }
    assert record.complete
    assert len(record.turns) == sum(len(one.turns) for one in recordings)
    assert len(record.tools) == sum(len(one.turns) for one in recordings)
    assert [row.name for row in record.tools].count("verdict") == 2
    assert len(record.pins) == len(record.turns) - 2
    assert record.kv
    assert record.kv[0].leased == 160
    first = [turn for turn in record.turns if turn.program == "page-window"]
    assert [turn.index for turn in first] == list(range(len(first)))
    assert [turn.first for turn in first] == [True] + [False] * (len(first) - 1)
    assert first[0].ideal_tokens == first[0].prompt_tokens
    assert all(turn.ideal_tokens == turn.prefilled_tokens for turn in first)
    assert all(row.end >= row.start >= 0 for row in record.tools)
    assert any("resolved: tests pass" in line for line in said)
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_conversation_is_real_and_append_only(log):
    runtime = FakeRuntime(log)
    recording = shipped("page-window")[0]
    played(Demo([recording], log), runtime)
    program = runtime.programs["page-window"]
    for before, after in itertools.pairwise(program.messages):
        assert after[: len(before)] == before
        assert [one["role"] for one in after[len(before) :]] == ["assistant", "user"]
    spoken = [one["content"] for one in program.messages[-1] if one["role"] == "assistant"]
    assert spoken == [turn.output for turn in recording.turns[:-1]]
    assert "OK" in program.messages[-1][-1]["content"]
    assert program.last == [False] * (len(recording.turns) - 1) + [True]


def test_a_recording_without_its_fix_is_unresolved(log):
    runtime = FakeRuntime(log)
    broken = without_edits(shipped("page-window")[0])
    demo = Demo([broken, *shipped("backup-rotate")], log)
    record = played(demo, runtime)
    outcomes = {row.program: (row.outcome, row.detail) for row in record.programs}
    assert outcomes["page-window"] == ("unresolved", "tests fail (exit code 1)")
    assert outcomes["backup-rotate"][0] == "resolved"


def test_a_command_that_fails_is_shown_and_the_agent_goes_on(log):
    runtime = FakeRuntime(log)
    recording = shipped("page-window")[0]
    turn = recording.turns[1]
    failing = replace(turn, tools=(replace(turn.tools[0], command="cat nowhere; exit 7"),))
    turns = (recording.turns[0], failing, *recording.turns[2:])
    demo = Demo([replace(recording, program=replace(recording.program, turns=turns))], log)
    record = played(demo, runtime)
    assert [row.exit_code for row in record.tools][1] == 7
    assert "exit code: 7" in runtime.programs["page-window"].messages[2][-1]["content"]
    assert record.programs[0].outcome == "resolved"


def test_a_failing_engine_or_sandbox_fails_only_its_program(log):
    class Broken(FakeRuntime):
        async def before_turn(self, program_id: str) -> None:
            if program_id == "backup-rotate":
                raise BackendUnavailable("The engine broke.", remedy="Start it again.")

    demo = Demo(shipped("page-window", "backup-rotate"), log)
    record = played(demo, Broken(log))
    outcomes = {row.program: row for row in record.programs}
    assert outcomes["page-window"].outcome == "resolved"
    assert outcomes["backup-rotate"].outcome == "failed"
    assert "Start it again." in outcomes["backup-rotate"].detail


def test_cancelled_in_the_middle_keeps_what_was_done(log):
    class Stuck(FakeRuntime):
        async def before_turn(self, program_id: str) -> None:
            if program_id == "backup-rotate" and len(self.programs[program_id].messages) == 2:
                reached.set()
                await anyio.sleep_forever()

    demo = Demo(shipped("page-window", "backup-rotate"), log)
    runtime = Stuck(log)
    boxes: list[Path] = []

    async def run() -> None:
        nonlocal reached, resolved
        reached, resolved = anyio.Event(), anyio.Event()
        demo.observer = lambda row, text: resolved.set() if row.done else None
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(demo.play, runtime)
                await reached.wait()
                await resolved.wait()
                boxes.extend(Path(b.workdir) for p in runtime.programs.values() for b in p.boxes)
                group.cancel_scope.cancel()

    reached: anyio.Event
    resolved: anyio.Event
    anyio.run(run)
    record = demo.record("fcfs")
    assert not record.complete
    outcomes = {row.program: row.outcome for row in record.programs}
    assert outcomes == {"page-window": "resolved", "backup-rotate": "cancelled"}
    assert sum(turn.program == "backup-rotate" for turn in record.turns) == 2
    assert boxes
    assert not [path for path in boxes if path.exists()]


def test_what_the_sandbox_lacks_is_skipped_with_the_reason(log):
    recording = shipped("page-window")[0]
    other = shipped("backup-rotate")[0]
    lacking = replace(recording, task=replace(recording.task, needs=("python3", "no-such-cc")))
    demo = Demo([lacking, other], log)
    record = played(demo, FakeRuntime(log))
    assert [(one.name, one.reason) for one in demo.skipped] == [
        ("page-window", "the sandbox has no no-such-cc")
    ]
    assert [row.program for row in record.programs] == ["backup-rotate"]


def test_a_sandbox_that_runs_nothing_is_an_error(log):
    class Dead(FakeRuntime):
        def program(self, program_id=None, *, tenant="default"):
            made = super().program(program_id, tenant=tenant)

            async def sandbox(spec=None):
                raise SandboxError("It died.", remedy="Look why.")

            made.sandbox = sandbox
            return made

    with pytest.raises(SandboxError, match="It died"):
        played(Demo(shipped("page-window"), log), Dead(log))


def test_events_of_other_programs_are_not_ours(log):
    runtime = FakeRuntime(log)

    async def other() -> None:
        async with runtime.program("elsewhere") as program:
            await program.chat([{"role": "user", "content": "hello"}], forced_text="hi")

    anyio.run(other)
    record = played(Demo(shipped("backup-rotate"), log), runtime)
    assert {turn.program for turn in record.turns} == {"backup-rotate"}


@given(st.lists(st.text(max_size=5), unique=True), st.integers(), st.floats(0.0, 10.0))
def test_stagger_is_seeded_and_bounded(names, seed, interval):
    arrivals = stagger(names, seed, interval)
    assert arrivals == stagger(names, seed, interval)
    times = list(arrivals.values())
    assert list(arrivals) == names
    assert times[:1] in ([], [0.0])
    assert all(0 <= b - a <= interval + 1e-6 for a, b in itertools.pairwise(times))


def test_summary_and_results_file(log, tmp_path):
    demo = Demo(shipped("backup-rotate"), log)
    record = played(demo, FakeRuntime(log))
    figures = summarise(demo, record, sandbox="process", report=tmp_path / "report.html")
    assert figures["programs"] == figures["resolved"] == 1
    assert figures["turns"] == 7
    assert figures["tool_calls"] == 6
    assert figures["prefix_hit_tokens"] == sum(turn.cached_tokens for turn in record.turns) > 0
    assert figures["sandbox"] == "process"
    assert figures["outcomes"]["backup-rotate"]["outcome"] == "resolved"
    assert headline(figures).startswith("1 of 1 agents resolved")
    write_json(tmp_path / "results.json", figures, demo, record)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["summary"] == figures
    assert RunRecord.from_json(read["run"]) == record
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
