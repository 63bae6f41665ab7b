"""Read and write workload files. Every complaint names file, line and field, and the way out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrt.bench.workload import Program, Tool, Turn, Workload
from agentrt.errors import WorkloadError

__all__ = ["CHARACTERS_PER_TOKEN", "parse_program", "read_workload", "write_workload"]

CHARACTERS_PER_TOKEN = 4
"""Stands in for a tokenizer where a literal turn gives no counts and the engine is simulated."""

FORMAT = "See the workload format in the manual, or convert with `agentrt bench import`."


class _Row:
    """One JSON object of the file, read field by field; knows its place for error messages."""

    def __init__(self, data: Any, place: str) -> None:
        if not isinstance(data, dict):
            raise WorkloadError(f"{place}: not an object: {_shown(data)}.", remedy=FORMAT)
        self._data: dict[str, Any] = data
        self.place = place

    def fail(self, field: str, problem: str, remedy: str = FORMAT) -> WorkloadError:
        return WorkloadError(f"{self.place}: {field}: {problem}.", remedy=remedy)

    def has(self, field: str) -> bool:
        return self._data.get(field) is not None

    def text(self, field: str, default: str | None = None) -> str | None:
        value = self._data.get(field)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(field, f"expected text, found {_shown(value)}")
        return value

    def required_text(self, field: str) -> str:
        value = self.text(field)
        if not value:
            raise self.fail(field, "is missing or empty", f"Give every object a {field!r} text.")
        return value

    def number(self, field: str, default: float | None = None) -> float | None:
        value = self._data.get(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(field, f"expected a number, found {_shown(value)}")
        if not 0 <= value < float("inf"):
            raise self.fail(field, f"is {value}", f"Give {field!r} a finite number of 0 or more.")
        return float(value)

    def count(self, field: str, default: int | None = None, least: int = 0) -> int:
        value = self._data.get(field, default)
        if value is None:
            raise self.fail(field, "is missing", f"Give {field!r} as a whole number of tokens.")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(field, f"expected a whole number, found {_shown(value)}")
        if value < least:
            raise self.fail(field, f"is {value}", f"Give {field!r} a whole number from {least} up.")
        return value

    def optional_count(self, field: str) -> int | None:
        return self.count(field) if self.has(field) else None

    def rows(self, field: str) -> list[_Row]:
        value = self._data.get(field) or []
        if not isinstance(value, list):
            raise self.fail(field, f"expected a list, found {_shown(value)}")
        return [_Row(row, f"{self.place}: {field}[{at}]") for at, row in enumerate(value)]

    def counts(self, field: str) -> tuple[int, ...]:
        value = self._data.get(field) or []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.fail(field, "expected a list of whole numbers")
        return tuple(value)


def read_workload(path: Path) -> Workload:
    """Read a JSON Lines workload file.

    Raises:
        WorkloadError: missing, empty or malformed; the message names file, line and field.
    """
    programs = [
        parse_program(data, place) for place, data in json_lines(path, read_text(path).splitlines())
    ]
    if not programs:
        raise WorkloadError(f"{path} holds no program.", remedy="Give a file with one or more.")
    _check_unique(path, programs)
    return Workload(name=path.stem, source=str(path), programs=tuple(programs))


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        WorkloadError: it is not there or not readable as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(
            f"{path} cannot be read: {error}.", remedy="Give the path of a JSON Lines file."
        ) from error


def json_lines(path: Path, lines: Iterable[str]) -> list[tuple[str, Any]]:
    """Return ``(place, value)`` for every line that is not blank."""
    found: list[tuple[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            found.append((place, json.loads(line)))
        except ValueError as error:
            raise WorkloadError(f"{place}: not JSON: {error}.", remedy=FORMAT) from error
    return found


def parse_program(data: Any, place: str) -> Program:
    """Check one line's object and return it as a program.

    Raises:
        WorkloadError: a field is missing, of the wrong kind, or contradicts another.
    """
    row = _Row(data, place)
    turns: list[Turn] = []
    held: dict[str, int] = {}
    for turn_row in row.rows("turns"):
        turn = _parse_turn(turn_row, held)
        held[turn.context] = turn.prompt_tokens + turn.output_tokens
        if any(not 0 <= place < len(turns) for place in turn.after or ()):
            raise turn_row.fail(
                "after",
                f"is {list(turn.after or ())}",
                "Name turns that stand before this one, from 0.",
            )
        turns.append(turn)
    if not turns:
        raise row.fail("turns", "is missing or empty", "Give every program at least one turn.")
    return Program(
        program=row.required_text("program"),
        tenant=row.text("tenant", "default") or "default",
        arrival=row.number("arrival", 0.0) or 0.0,
        deadline=row.number("deadline"),
        source=row.text("source", "") or "",
        turns=tuple(turns),
    )


def _parse_turn(row: _Row, held: Mapping[str, int]) -> Turn:
    context = row.text("context", "main") or "main"
    before = held.get(context, 0)
    messages = _messages(row)
    output = row.text("output")
    if bool(messages) != (output is not None):
        raise row.fail(
            "output" if messages else "prompt",
            "is missing, though the turn has the other half of its text",
            "Give both 'prompt' (or 'messages') and 'output', or neither.",
        )
    prompt_tokens, reused, output_tokens = _token_counts(row, before, messages, output)
    _check_counts(row, prompt_tokens, reused, before)
    return Turn(
        context=context,
        prompt_tokens=prompt_tokens,
        reused_tokens=reused,
        output_tokens=output_tokens,
        gap=row.number("gap"),
        at=row.number("at"),
        seconds=row.number("seconds"),
        tools=tuple(_parse_tool(tool) for tool in row.rows("tools")),
        blocks=row.counts("blocks"),
        block_tokens=row.count("block_tokens", default=0, least=0),
        messages=messages,
        output=output,
        after=row.counts("after") if row.has("after") else None,
    )


def _token_counts(
    row: _Row, before: int, messages: Sequence[Mapping[str, str]], output: str | None
) -> tuple[int, int, int]:
    """Return prompt, reused and output tokens; a literal turn without counts is estimated."""
    if output is None or row.has("prompt_tokens"):
        return (
            row.count("prompt_tokens", least=1),
            row.count("reused_tokens", default=0),
            row.count("output_tokens", least=1),
        )
    new = estimate_tokens("".join(message["content"] for message in messages))
    return before + new, before, estimate_tokens(output)


def _check_counts(row: _Row, prompt: int, reused: int, before: int) -> None:
    if reused > prompt:
        raise row.fail("reused_tokens", f"is {reused}, more than prompt_tokens {prompt}")
    if reused > before:
        raise row.fail(
            "reused_tokens",
            f"is {reused}, but the context held only {before} tokens before this turn",
            "Count only what this context's previous prompt and output already held.",
        )
    blocks = len(row.counts("blocks")) * row.count("block_tokens", default=0)
    if row.has("blocks") and blocks < prompt:
        raise row.fail("blocks", f"cover {blocks} of {prompt} prompt tokens")


def _messages(row: _Row) -> tuple[Mapping[str, str], ...]:
    if row.has("prompt"):
        return ({"role": "user", "content": row.required_text("prompt")},)
    return tuple(
        {"role": message.required_text("role"), "content": message.required_text("content")}
        for message in row.rows("messages")
    )


def _parse_tool(row: _Row) -> Tool:
    return Tool(
        name=row.required_text("name"),
        kind=row.text("kind"),
        duration=row.number("duration"),
        command=row.text("command"),
        peak_memory=row.optional_count("peak_memory"),
        cpu_seconds=row.number("cpu_seconds"),
        exit_code=row.optional_count("exit_code"),
    )


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, at least 1."""
    return max(1, len(text) // CHARACTERS_PER_TOKEN)


def _check_unique(path: Path, programs: Sequence[Program]) -> None:
    seen: set[str] = set()
    for program in programs:
        if program.program in seen:
            raise WorkloadError(
                f"{path}: program: {program.program!r} appears twice.",
                remedy="Give every program a name of its own.",
            )
        seen.add(program.program)


def write_workload(programs: Iterable[Program], path: Path) -> int:
    """Write a workload file and return how many programs it holds.

    Raises:
        WorkloadError: the file cannot be written.
    """
    lines = [json.dumps(_program_row(program), ensure_ascii=False) for program in programs]
    try:
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise WorkloadError(
            f"{path} cannot be written: {error}.", remedy="Name a file in a directory that exists."
        ) from error
    return len(lines)


def _program_row(program: Program) -> dict[str, Any]:
    return {
        "program": program.program,
        "tenant": program.tenant,
        "arrival": program.arrival,
        "deadline": program.deadline,
        "source": program.source,
        "turns": [_turn_row(turn) for turn in program.turns],
    }


def _turn_row(turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {
        "context": turn.context,
        "prompt_tokens": turn.prompt_tokens,
        "reused_tokens": turn.reused_tokens,
        "output_tokens": turn.output_tokens,
        "gap": turn.gap,
    }
    if turn.tools:
        row["tools"] = [_present(tool) for tool in turn.tools]
    if turn.blocks:
        row |= {"block_tokens": turn.block_tokens, "blocks": list(turn.blocks)}
    if turn.after is not None:
        row["after"] = list(turn.after)
    if turn.literal:
        row |= {"messages": [dict(message) for message in turn.messages], "output": turn.output}
    return row


def _present(tool: Tool) -> dict[str, Any]:
    fields = ("name", "kind", "duration", "command", "peak_memory", "cpu_seconds", "exit_code")
    return {name: getattr(tool, name) for name in fields if getattr(tool, name) is not None}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
