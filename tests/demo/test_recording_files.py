"""Reading recordings of one's own: what may be left out, and what is refused with a remedy."""

from __future__ import annotations

import json

import pytest

from agentrt.demo.recording import REPOSITORIES, command_of, read_recordings
from agentrt.errors import ConfigError, WorkloadError


def line(**changes) -> dict:
    told = {
        "program": "mine",
        "task": {"repository": "page-window", "test": "true", "protect": ["tests"]},
        "turns": [
            {
                "messages": [{"role": "user", "content": "fix it"}],
                "output": "look",
                "tools": [{"name": "bash", "kind": "read", "command": "ls"}],
            },
            {"output": "done"},
        ],
    }
    return told | changes


def write(directory, *rows: object):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (directory / "own.jsonl").write_text(text, encoding="utf-8")
    return directory


def test_later_turns_need_no_observation(tmp_path):
    (mine,) = read_recordings(write(tmp_path, line()))
    assert mine.task.repository == REPOSITORIES.resolve() / "page-window"
    assert [command_of(turn) for turn in mine.turns] == ["ls", None]
    assert [turn.output for turn in mine.turns] == ["look", "done"]
    assert mine.turns[0].next_tool == "bash:read"
    assert (mine.task.kind, mine.task.title, mine.task.needs) == ("", "", ())


def test_a_repository_of_ones_own_is_found_beside_the_file(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "check.sh").write_text("exit 1\n")
    task = {"repository": "./repo", "test": "sh check.sh", "protect": ["check.sh"]}
    (mine,) = read_recordings(write(tmp_path, line(task=task)))
    assert mine.task.originals() == {"check.sh": b"exit 1\n"}


def test_only_chooses(tmp_path):
    write(tmp_path, line(program="a"), "", line(program="b"), line(program="c"))
    assert [one.name for one in read_recordings(tmp_path)] == ["a", "b", "c"]
    assert [one.name for one in read_recordings(tmp_path, ["c", "a"])] == ["a", "c"]
    with pytest.raises(ConfigError, match=r"named nobody\. Choose from: a, b, c"):
        read_recordings(tmp_path, ["nobody"])


@pytest.mark.parametrize("where", ["", "nowhere"])
def test_no_recordings(tmp_path, where):
    with pytest.raises(ConfigError, match="--recordings"):
        read_recordings(tmp_path / where)


TASK = line()["task"]
FIRST, LAST = line()["turns"]
TWO_TOOLS = [{"name": "bash", "command": "ls"}] * 2


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", r"own\.jsonl:1: not JSON"),
        ("[]", r"own\.jsonl:1: .*object"),
        (line(program=""), "program"),
        (line(task=None), "task: is missing"),
        (line(task=TASK | {"repository": "no-such"}), "not a directory"),
        (line(task=TASK | {"repository": "../no-such"}), "not a directory"),
        (line(task=TASK | {"test": ""}), "task: test"),
        (line(task=TASK | {"kind": 3}), "task: kind"),
        (line(task=TASK | {"protect": "tests"}), "task: protect"),
        (line(task=TASK | {"protect": ["../x"]}), "leaves the repository"),
        (line(task=TASK | {"protect": ["/etc"]}), "leaves the repository"),
        (line(task=TASK | {"needs": [1]}), "task: needs"),
        (line(turns=[]), "turns"),
        (line(turns=None), "turns"),
        (line(turns=[{"output": "no task"}]), "prompt"),
        (line(turns=[FIRST, {}]), "output"),
        (line(turns=[FIRST, {"prompt_tokens": 3, "output_tokens": 3}]), r"output"),
        (line(turns=[FIRST | {"tools": TWO_TOOLS}, LAST]), r"turns\[0\]: tools: .*one tool"),
        (line(turns=[FIRST | {"tools": [{"name": "bash"}]}, LAST]), "command"),
    ],
)
def test_malformed(tmp_path, row, complaint):
    with pytest.raises(WorkloadError, match=complaint):
        read_recordings(write(tmp_path, row))


def test_names_are_unique_across_files(tmp_path):
    write(tmp_path, line())
    (tmp_path / "other.jsonl").write_text(json.dumps(line()))
    with pytest.raises(WorkloadError, match="appears twice"):
        read_recordings(tmp_path)


def test_not_utf8(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xff")
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_recordings(tmp_path)
