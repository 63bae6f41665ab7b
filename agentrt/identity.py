"""Who is calling: the program a request names, and its hints. Pure; knows no HTTP library.

A request may name its program in several places. ``SOURCES`` lists them in order; the first that
holds a usable name wins. A request that names none is placed by its message prefix
(``agentrt.serving.contexts``). Names and hints are advisory: a malformed one is counted and
ignored, it never fails a request, and it never changes a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.hints import FIELDS, Field, Note, Readings, read_hints
from agentrt.hints.table import Json
from agentrt.scheduling.hints import NO_HINTS, TurnHints

__all__ = ["SOURCES", "Identity", "identify", "scoped_id"]

SOURCES: tuple[Field, ...] = tuple(row for row in FIELDS if row.target == "program")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request says about itself.

    Args:
        program: the name it gave its program, or None.
        source: where that stood: a label of ``SOURCES``, or ``"none"``.
        parent: the name of the program that started this one as a sub-agent of its own.
        member: the sub-agent's own name within its program; ``parent_member`` that of its caller.
        next_tool: the tool that will run after this turn.
        last: the program ends with this turn.
        hints: everything else, for the scheduler.
        notes: what became of each field that was there.
    """

    program: str | None = None
    source: str = "none"
    parent: str | None = None
    member: str | None = None
    parent_member: str | None = None
    next_tool: str | None = None
    last: bool = False
    hints: TurnHints = NO_HINTS
    notes: tuple[Note, ...] = ()

    @property
    def malformed(self) -> tuple[str, ...]:
        """The labels of the fields that were there and not usable."""
        return tuple(note.label for note in self.notes if note.outcome == "malformed")


def identify(body: Json, headers: Json, now: float = 0.0) -> Identity:
    """Return what ``body`` and ``headers`` (lower-case names) say about the calling program.

    ``now`` is the scheduler's time, from which deadlines count. Never raises.
    """
    readings = read_hints(body, headers)
    values = readings.values
    return Identity(
        program=values.get("program"),
        source=readings.sources.get("program", "none"),
        parent=values.get("parent"),
        member=values.get("member"),
        parent_member=values.get("parent_member"),
        next_tool=values.get("next_tool"),
        last=values.get("last", False),
        hints=_hints(readings, now),
        notes=tuple(readings.notes),
    )


def scoped_id(tenant: str, program: str) -> str:
    """Return an id that is unique over all tenants: equal names of two tenants never meet."""
    return f"{tenant.replace('%', '%25').replace('/', '%2F')}/{program}"


def _hints(readings: Readings, now: float) -> TurnHints:
    values = readings.values

    def moment(seconds: float | None) -> float | None:
        return None if seconds is None else now + seconds

    hints = TurnHints(
        priority=values.get("priority", 0),
        turn_deadline=moment(values.get("turn_deadline")),
        program_deadline=moment(values.get("program_deadline")),
        output_tokens=values.get("output_tokens"),
        gap_seconds=values.get("gap_seconds"),
        remaining_turns=values.get("remaining_turns"),
        keep_seconds=values.get("keep_seconds"),
        agent=values.get("agent"),
        last_tool=values.get("last_tool"),
        step=values.get("step"),
    )
    return NO_HINTS if hints == NO_HINTS else hints
