"""From a request to what it says: one pass over the table, and a note on everything found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentrt.hints.actions import actions
from agentrt.hints.table import FIELDS, Json, Target, at

__all__ = ["Note", "Outcome", "Readings", "read_hints"]

Outcome: TypeAlias = Literal["used", "clamped", "overridden", "malformed", "unsupported", "unknown"]
"""``used``; ``clamped``: used, after it was brought into its range; ``overridden`` by a field that
goes before it; ``malformed``; ``unsupported``: known, and nothing is done about it; ``unknown``: a
key of an object of hints that no row knows."""


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one field of a request. ``label`` is one of a bounded number, except for the
    names of commands, which clients choose."""

    label: str
    outcome: Outcome


@dataclass(slots=True)
class Readings:
    """What a request says, by target, and where the value of each stood."""

    values: dict[Target, Any] = field(default_factory=dict)
    sources: dict[Target, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def read_hints(body: Json, headers: Json) -> Readings:
    """Read a parsed JSON body and headers with lower-case names. Never raises."""
    readings = Readings()
    for row in FIELDS:
        found = row.read(body, headers)
        if found is not None:
            usable = row.convert(found)
            if usable is None:
                readings.notes.append(Note(row.label, "malformed"))
            else:
                outcome = _take(readings, row.target, row.label, usable.value)
                clamped = outcome == "used" and usable.clamped
                readings.notes.append(Note(row.label, "clamped" if clamped else outcome))
    for label, well_formed in actions(body):
        readings.notes.append(Note(label, "unsupported" if well_formed else "malformed"))
    readings.notes += _unknown(body)
    return readings


def _take(readings: Readings, target: Target, label: str, value: Any) -> Outcome:
    """Keep a value unless one that goes before it was kept. A yes is kept beside any no."""
    if target == "none":
        return "unsupported"
    if value is None:
        return "used"
    if target in readings.values and not (target == "last" and value):
        return "overridden"
    readings.values[target] = value
    readings.sources.setdefault(target, label)
    return "used"


def _objects() -> dict[tuple[str, ...], frozenset[str]]:
    """Return the objects that hold nothing but hints, and the keys of each that rows read."""
    known: dict[tuple[str, ...], set[str]] = {
        ("agent_hint",): {"context_management"},
        ("agent_hint", "cache_control"): {"type", "ttl", "block_offset"},
        ("cache_control",): {"type", "ttl"},
        ("nvext", "cache_control"): {"type", "ttl"},
        ("kv_hints",): {"protocol_version", "message_id", "actions"},
    }
    holders = ("agentrt", "agent_hint", "agent_hints", "nvext", "vllm_xargs", "extra_args")
    for row in FIELDS:
        path = tuple(row.label.removeprefix("body:").split("."))
        for depth in range(1, len(path)):
            if path[0] in holders:
                known.setdefault(path[:depth], set()).add(path[depth])
    known[("extra_args",)].add("agentic_context")
    return {path: frozenset(keys) for path, keys in known.items()}


OBJECTS = _objects()


def _unknown(body: Json) -> Iterator[Note]:
    for path, keys in OBJECTS.items():
        found = at(*path)(body, {})
        if found is None:
            continue
        label = "body:" + ".".join(path)
        if not isinstance(found, Mapping):
            if path[-1] not in ("cache_control", "kv_hints"):  # those have rows of their own
                yield Note(label, "malformed")
        elif not keys.issuperset(found):
            yield Note(label + ".*", "unknown")
