"""Recorded sessions: workload files with texts, and the task each of them works on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from agentrt.bench.parse import parse_program
from agentrt.bench.workload import Program, Turn
from agentrt.errors import ConfigError, WorkloadError

__all__ = ["RECORDINGS", "REPOSITORIES", "Recording", "Task", "command_of", "read_recordings"]

REPOSITORIES = Path(__file__).parent / "repos"
RECORDINGS = Path(__file__).parent / "recordings"

FORMAT = "docs/demo.md shows a whole recording."
LIVE = {"role": "user", "content": "(what the command printed)"}
"""Stands in for an observation that was not recorded; playing always shows the real one."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a session works on and how it is judged.

    Attributes:
        repository: the directory that the sandbox starts with a copy of.
        kind: what sort of bug it is, in a word or two.
        title: the issue's title.
        test: the command that passes (exit code 0) once the bug is fixed.
        protect: files and directories, relative to the repository, that the verdict takes from the
            repository and not from the agent.
        needs: programs that have to be in the sandbox; without them the task is skipped.
    """

    repository: Path
    kind: str
    title: str
    test: str
    protect: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def originals(self) -> dict[str, bytes]:
        """Return the protected files by their path relative to the repository."""
        found: dict[str, bytes] = {}
        for name in self.protect:
            path = self.repository / name
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            for file in files:
                if file.is_file() and "__pycache__" not in file.parts:
                    found[file.relative_to(self.repository).as_posix()] = file.read_bytes()
        return found


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded session. ``program`` holds its turns as a workload does."""

    task: Task
    program: Program

    @property
    def name(self) -> str:
        """The program's name; unique within a run."""
        return self.program.program

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The recorded turns, in order."""
        return self.program.turns


def command_of(turn: Turn) -> str | None:
    """Return the shell command that the turn's output calls, None if it calls none."""
    return turn.tools[0].command if turn.tools else None


def read_recordings(
    directory: Path = RECORDINGS, only: Sequence[str] = ()
) -> tuple[Recording, ...]:
    """Read every ``*.jsonl`` file of a directory, sorted by file name.

    ``only`` keeps the programs of these names.

    Raises:
        ConfigError: no such directory, nothing in it, or a name of ``only`` is not there.
        WorkloadError: a file is malformed; the message names file, line and field.
    """
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise ConfigError(
            f"There is no *.jsonl file in {directory}.",
            remedy="Name a directory of recordings with --recordings DIR. " + FORMAT,
        )
    found: dict[str, Recording] = {}
    for file in files:
        for recording in _read_file(file):
            if recording.name in found:
                raise WorkloadError(
                    f"{file}: program: {recording.name!r} appears twice in {directory}.",
                    remedy="Give every recording a name of its own.",
                )
            found[recording.name] = recording
    return _choose(found, only)


def _choose(found: dict[str, Recording], only: Sequence[str]) -> tuple[Recording, ...]:
    unknown = sorted(set(only) - set(found))
    if unknown:
        raise ConfigError(
            f"There is no recording named {', '.join(unknown)}.",
            remedy=f"Choose from: {', '.join(found)}.",
        )
    return tuple(one for name, one in found.items() if not only or name in only)


def _read_file(file: Path) -> list[Recording]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{file} cannot be read: {error}.", remedy=FORMAT) from error
    places = ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1))
    return [_parse(line, place, file.parent) for place, line in places if line.strip()]


def _parse(line: str, place: str, base: Path) -> Recording:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise WorkloadError(f"{place}: not JSON: {error}.", remedy=FORMAT) from error
    program = parse_program(_with_observations(data), place)
    for number, turn in enumerate(program.turns):
        _check_turn(turn, f"{place}: turns[{number}]")
    return Recording(task=_parse_task(data.get("task"), f"{place}: task", base), program=program)


def _with_observations(data: Any) -> Any:
    """Return the program with a message in every later turn, since those need not be recorded."""
    if not isinstance(data, dict) or not isinstance(data.get("turns"), list):
        return data
    first, *later = data["turns"] or [None]
    spoken = {"messages", "prompt"}
    filled = [
        {**turn, "messages": [LIVE]} if isinstance(turn, dict) and not spoken & set(turn) else turn
        for turn in later
    ]
    return {**data, "turns": [first, *filled]}


def _check_turn(turn: Turn, place: str) -> None:
    if turn.output is None:
        raise WorkloadError(f"{place}: output: is missing.", remedy=FORMAT)
    if len(turn.tools) > 1 or any(not tool.command for tool in turn.tools):
        raise WorkloadError(
            f"{place}: tools: expected at most one tool, with a 'command'.", remedy=FORMAT
        )


def _parse_task(data: Any, place: str, base: Path) -> Task:
    if not isinstance(data, dict):
        raise WorkloadError(f"{place}: is missing or not an object.", remedy=FORMAT)
    texts = {name: data.get(name, "") for name in ("repository", "kind", "title", "test")}
    for name, value in texts.items():
        if not isinstance(value, str) or (name in ("repository", "test") and not value):
            raise WorkloadError(f"{place}: {name}: expected text, found {value!r}.", remedy=FORMAT)
    return Task(
        repository=_repository(texts.pop("repository"), place, base),
        protect=_names(data, "protect", place, inside=True),
        needs=_names(data, "needs", place),
        **texts,
    )


def _repository(name: str, place: str, base: Path) -> Path:
    """A bare name is a shipped repository, anything with a slash a path from the file."""
    path = base / name if "/" in name else REPOSITORIES / name
    if not path.is_dir():
        raise WorkloadError(
            f"{place}: repository: {path} is not a directory.",
            remedy="Name a shipped repository, or give a path such as ./my-repo.",
        )
    return path.resolve()


def _names(data: dict[str, Any], field: str, place: str, inside: bool = False) -> tuple[str, ...]:
    value = data.get(field, [])
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise WorkloadError(f"{place}: {field}: expected a list of names.", remedy=FORMAT)
    if inside and any(name.startswith("/") or ".." in PurePosixPath(name).parts for name in value):
        raise WorkloadError(
            f"{place}: {field}: a path leaves the repository.",
            remedy="Give paths relative to the repository, without '..'.",
        )
    return tuple(value)
