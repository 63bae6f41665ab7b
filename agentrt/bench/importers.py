"""Public trace formats turned into workload files; `bench run` also reads them as they are.

- ``miniswe``: one LLM call a line, ``timestamp`` (microseconds), ``input``, ``output``,
  ``session_id``; ``input`` is the user's side so far, without the model's answers.
- ``mooncake``: one request a line, ``timestamp`` (milliseconds), ``input_length``,
  ``output_length``, ``hash_ids`` (one for each 512 tokens of the prompt).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from agentrt.bench.parse import estimate_tokens, json_lines, read_text, read_workload
from agentrt.bench.synthetic import PREFIX, synthetic_workload
from agentrt.bench.workload import Program, Tool, Turn, Workload
from agentrt.errors import ConfigError, WorkloadError

__all__ = ["FORMATS", "detect_format", "import_workload", "load_workload"]

Rows: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]

MOONCAKE_BLOCK = 512
SHELL_BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Format:
    """A foreign format: the fields that every line of it has, and how its lines become programs."""

    name: str
    fields: Mapping[str, type]
    convert: Callable[[Rows, str], list[Program]]


def load_workload(path: Path) -> Workload:
    """Read a workload file, a file of a known foreign format, or a directory of either.

    A path of the form ``synthetic:NAME?key=value`` stands for a workload drawn by rule.

    Raises:
        ConfigError: no synthetic workload of that name or with that parameter.
        WorkloadError: missing, empty, malformed, or of no known format.
    """
    if str(path).startswith(PREFIX):
        return synthetic_workload(str(path))
    files = _files(path)
    formats = {file: detect_format(file) for file in files}
    programs: list[Program] = []
    for file, name in formats.items():
        found = read_workload(file) if name == "agentrt" else import_workload(name, file)
        programs += found.programs
    return _checked(Workload(name=path.stem, source=str(path), programs=tuple(programs)))


def import_workload(name: str, path: Path) -> Workload:
    """Read ``path`` (a file, or a directory of ``*.jsonl``) as the foreign format ``name``.

    Raises:
        ConfigError: no format of that name.
        WorkloadError: the content is not of that format.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"There is no workload format {name!r}.",
            remedy=f"Known formats: {', '.join(sorted(FORMATS))}.",
        )
    form = FORMATS[name]
    programs: list[Program] = []
    for file in _files(path):
        rows = json_lines(file, read_text(file).splitlines())
        for place, row in rows:
            _check_fields(form, place, row)
        programs += form.convert(rows, f"{name} {file.name}")
    return _checked(Workload(name=path.stem, source=str(path), programs=tuple(programs)))


def detect_format(path: Path) -> str:
    """Return ``agentrt`` or a foreign format's name, from the first line's fields.

    Raises:
        WorkloadError: the first line is of no known format.
    """
    lines = (line for line in read_text(path).splitlines() if line.strip())
    rows = json_lines(path, [next(lines, "")])
    first = rows[0][1] if rows else None
    if isinstance(first, dict):
        if "turns" in first or "program" in first:
            return "agentrt"
        for form in FORMATS.values():
            if form.fields.keys() <= first.keys():
                return form.name
    raise WorkloadError(
        f"{path}:1: the format is not known.",
        remedy=f"Give a workload file, or one of: {', '.join(sorted(FORMATS))}.",
    )


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise WorkloadError(f"{path} does not exist.", remedy="Give a workload file or directory.")
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise WorkloadError(f"{path} holds no *.jsonl file.", remedy="Give another directory.")
    return files


def _checked(workload: Workload) -> Workload:
    names = [program.program for program in workload.programs]
    if not names:
        raise WorkloadError(f"{workload.source} holds no program.", remedy="Give another file.")
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if twice:
        raise WorkloadError(
            f"{workload.source}: program {twice[0]!r} appears twice.",
            remedy="Give every program a name of its own, or name one file of the directory.",
        )
    return workload


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _check_fields(form: Format, place: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise WorkloadError(f"{place}: expected an object.", remedy="See the format's own manual.")
    for field, kind in form.fields.items():
        if not isinstance(row.get(field), kind) or isinstance(row.get(field), bool):
            raise WorkloadError(
                f"{place}: {field}: expected {kind.__name__}.",
                remedy=f"Check that the file is of the format {form.name}.",
            )


# --- miniswe --------------------------------------------------------------------------------------


def _from_miniswe(rows: Rows, source: str) -> list[Program]:
    sessions: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, row in rows:
        sessions.setdefault(row["session_id"], []).append((place, row))
    return [_miniswe_program(name, calls, source) for name, calls in sessions.items()]


def _miniswe_program(name: str, calls: Rows, source: str) -> Program:
    """One session. All sessions arrive at 0: they were recorded one after another.

    The time between two calls stands for the gap: it also holds the recording model's own time,
    which the trace does not tell apart.
    """
    calls = sorted(calls, key=lambda call: int(call[1]["timestamp"]))
    times = [int(row["timestamp"]) / 1e6 for _, row in calls]
    gaps = [round(later - sooner, 6) for sooner, later in pairwise(times)]
    turns: list[Turn] = []
    seen, held = "", 0
    for (place, row), gap in zip(calls, [*gaps, None], strict=True):
        new = _new_text(place, row["input"], seen)
        turn = _miniswe_turn(new, row["output"], held, gap)
        seen, held = row["input"], turn.prompt_tokens + turn.output_tokens
        turns.append(turn)
    return Program(program=name, turns=tuple(turns), source=source)


def _new_text(place: str, text: str, seen: str) -> str:
    if not text.startswith(seen) or len(text) == len(seen):
        raise WorkloadError(
            f"{place}: input: does not extend the input of the call before it.",
            remedy="Remove the session: only sessions that grow can be imported.",
        )
    return text[len(seen) :]


def _miniswe_turn(new: str, output: str, held: int, gap: float | None) -> Turn:
    return Turn(
        context="main",
        prompt_tokens=held + estimate_tokens(new),
        reused_tokens=held,
        output_tokens=estimate_tokens(output),
        gap=gap,
        tools=tuple(_shell_tools(output)),
        messages=({"role": "user", "content": new},),
        output=output,
    )


def _shell_tools(output: str) -> Iterable[Tool]:
    """The shell calls of an answer, by first word; their repositories are not in the trace."""
    for block in SHELL_BLOCK.findall(output):
        words = block.split()
        yield Tool(name="bash", kind=words[0] if words else None)


# --- mooncake -------------------------------------------------------------------------------------


def _from_mooncake(rows: Rows, source: str) -> list[Program]:
    return [
        _mooncake_program(f"request-{number}", place, row, source)
        for number, (place, row) in enumerate(rows)
    ]


def _mooncake_program(name: str, place: str, row: Mapping[str, Any], source: str) -> Program:
    length, blocks = row["input_length"], tuple(row["hash_ids"])
    if length < 1 or len(blocks) * MOONCAKE_BLOCK < length:
        raise WorkloadError(
            f"{place}: hash_ids: {len(blocks)} blocks cannot hold {length} tokens.",
            remedy=f"Give one id for each {MOONCAKE_BLOCK} tokens of a prompt of 1 or more.",
        )
    turn = Turn(
        context="main",
        prompt_tokens=length,
        reused_tokens=0,
        output_tokens=max(1, row["output_length"]),
        blocks=blocks,
        block_tokens=MOONCAKE_BLOCK,
    )
    return Program(program=name, turns=(turn,), arrival=row["timestamp"] / 1e3, source=source)


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format(
            "miniswe",
            {"timestamp": object, "input": str, "output": str, "session_id": str},
            _from_miniswe,
        ),
        Format(
            "mooncake",
            {"timestamp": int, "input_length": int, "output_length": int, "hash_ids": list},
            _from_mooncake,
        ),
    )
}
