"""The shipped repositories and recordings: each bug is real, and each session really fixes it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from agentrt.demo.agent import sandbox_spec
from agentrt.demo.recording import REPOSITORIES, Recording, command_of, read_recordings
from agentrt.demo.verdict import Verdict, judge
from agentrt.sandbox.base import ExecResult, Sandbox, SandboxSpec
from tests.demo.fakes import LocalSandbox

SHIPPED = {one.name: one for one in read_recordings()}
BLOCK = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)


@pytest.fixture(params=SHIPPED)
def recording(request) -> Recording:
    return SHIPPED[request.param]


@pytest.fixture
def playable(recording: Recording) -> Recording:
    missing = [name for name in recording.task.needs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{recording.name} needs {', '.join(missing)}")
    return recording


async def play(
    recording: Recording, skip_kind: str | None = None
) -> tuple[Verdict, list[ExecResult]]:
    """Run a recording's commands in order and judge what they leave."""
    boxes: list[Sandbox] = []

    async def make(spec: SandboxSpec) -> Sandbox:
        boxes.append(LocalSandbox(spec))
        return boxes[-1]

    try:
        worked = await make(sandbox_spec(recording))
        results = [
            await worked.exec(command, timeout=60)
            for turn in recording.turns
            if (command := command_of(turn)) and turn.tools[0].kind != skip_kind
        ]
        return await judge(recording.task, worked, lambda: make(sandbox_spec())), results
    finally:
        for box in boxes:
            await box.close()


def test_there_are_ten_of_different_kinds_and_nine_need_no_compiler():
    tasks = [one.task for one in SHIPPED.values()]
    assert len(tasks) == len({task.kind for task in tasks}) == 10
    assert sum("cc" not in task.needs for task in tasks) >= 9
    assert {task.repository.name for task in tasks} == {
        path.name for path in REPOSITORIES.iterdir() if path.is_dir() and path.name[0] not in "._"
    }


def test_the_original_fails(playable):
    untouched = replace(playable, program=replace(playable.program, turns=()))
    verdict, _ = anyio.run(play, untouched)
    assert not verdict.resolved
    assert verdict.test is not None
    assert verdict.test.exit_code in (1, 2)


def test_the_recorded_session_fixes_it(playable):
    verdict, results = anyio.run(play, playable)
    assert verdict.resolved, [one.stdout + one.stderr for one in results]
    assert verdict.detail == "tests pass"
    recorded = [turn.tools[0].exit_code for turn in playable.turns if turn.tools]
    assert [one.exit_code for one in results] == recorded


def test_without_its_edits_it_stays_unresolved(playable):
    verdict, _ = anyio.run(play, playable, "edit")
    assert not verdict.resolved
    assert verdict.detail.startswith("tests fail")


def test_texts_and_commands_agree(recording):
    *working, closing = recording.turns
    assert 6 <= len(recording.turns) <= 12
    for turn in working:
        assert turn.output is not None
        assert BLOCK.findall(turn.output) == [command_of(turn)]
        assert len(turn.output) <= 650
    assert command_of(closing) is None
    assert "```" not in (closing.output or "")


def test_session_starts_with_the_issue_and_ends_with_a_test(recording):
    system, user = recording.turns[0].messages
    readme = (recording.task.repository / "README.md").read_text(encoding="utf-8")
    issue = readme.split("## Issue: ")[1]
    title, body = issue.split("\n", 1)
    assert title == recording.task.title
    assert f"# {title}" in user["content"]
    assert body.strip() in user["content"]
    assert recording.task.test in user["content"]
    systems = {one.turns[0].messages[0]["content"] for one in SHIPPED.values()}
    assert systems == {system["content"]}


def test_recordings_name_no_place_of_their_making(recording):
    text = "".join(m["content"] for turn in recording.turns for m in turn.messages)
    assert not re.search(r"/root|/home|\.pyenv", text)


def test_repositories_hold_sources_only():
    files = [path for path in REPOSITORIES.glob("*/**/*") if path.is_file()]
    assert len(files) > 50
    built = {".pyc", ".o", ".pyz", ".so"}
    assert [path for path in files if path.suffix in built or path.stat().st_size > 20_000] == []


def test_tests_are_protected(recording):
    originals = recording.task.originals()
    assert originals
    assert all(Path(name).parts[0] == "tests" for name in originals)
