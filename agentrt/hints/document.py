"""The tables of ``docs/hints.md``, made of the parser's own table so that they cannot go stale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from agentrt.hints.table import FIELDS, PRIORITY, Field, Target
from agentrt.hints.values import MAX_TTL

__all__ = ["BEGIN", "END", "MEANINGS", "document", "tables"]

BEGIN: Final = "<!-- made by scripts/hints-doc: do not edit below -->"
END: Final = "<!-- end of what is made -->"

MEANINGS: Final[Mapping[Target, str]] = MappingProxyType(
    {
        "program": "the program's name, within the tenant",
        "parent": "the name of the program that started this one: it counts to its root",
        "member": "a sub-agent's own name within its program",
        "parent_member": "the name of the agent that started this sub-agent",
        "agent": "the kind of agent: programs of one kind share an execution graph",
        "step": "the declared step of the execution graph that this turn is",
        "next_tool": "the tool that runs after this turn",
        "last_tool": "the tool that ran before it; else what the turn before it said or showed",
        "last": "the program ends with this turn and is released; a sub-agent's: its context is",
        "remaining_turns": "turns left after this one, 0 to 10,000",
        "output_tokens": "output tokens of this turn, 1 to 1,048,576",
        "gap_seconds": f"seconds until the context is back, 0 to {MAX_TTL:,.0f}",
        "priority": f"higher goes first; -{PRIORITY} to {PRIORITY}, 0 is ordinary",
        "turn_deadline": "when this turn should have ended, up to 30 days ahead",
        "program_deadline": "when the program should have",
        "keep_seconds": f"seconds to keep the KV, if there is room, 0 to {MAX_TTL:,.0f}",
        "none": "accepted, counted as `unsupported`, without effect",
    }
)
"""What is said to a reader of each target, in the order of the tables."""


def tables() -> str:
    """Return the tables in markdown."""
    lines: list[str] = []
    for target, meaning in MEANINGS.items():
        rows = [row for row in FIELDS if row.target == target]
        lines += [f"**{_title(target)}**: {meaning}.", "", "| # | field | |", "|---|---|---|"]
        lines += _rows(rows)
        lines.append("")
    return "\n".join(lines)


def document(text: str) -> str:
    """Return the document ``text`` with its tables made anew.

    Raises:
        ValueError: the document does not have the two marks.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def _title(target: Target) -> str:
    return "No effect" if target == "none" else target.replace("_", " ").capitalize()


def _rows(rows: list[Field]) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        place, _, name = row.label.partition(":")
        shown = f"`{name}`" if place == "body" else f"header `{name}`"
        yield f"| {number} | {shown} | {row.note} |"
