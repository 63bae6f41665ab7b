"""Which GPU rows there are to measure, in which order, within which time; what is kept. Pure.

Results are a plain dictionary that goes to a file after every row. Rows of the same machine and
the same sources are kept by the next run; others are measured anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.errors import ConfigError

__all__ = [
    "Figure",
    "Plan",
    "Row",
    "chosen",
    "done",
    "failures",
    "finish",
    "keep",
    "met",
    "table_row",
]

Sense: TypeAlias = Literal["share", "most", "least", "none"]
"""``share``: value over bound is to be at least the target; ``most``, ``least``: the value itself;
``none``: told without a target."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Args:
        name: how it is asked for.
        title: what it says.
        unit: of the value.
        sense: what the target bounds.
        target: the number to reach.
        seconds: what it takes on a GPU, about, its model's making included.
        model: the shape it needs; rows of a model follow each other.
    """

    name: str
    title: str
    unit: str
    sense: Sense = "none"
    target: float | None = None
    seconds: float = 30.0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured: a value and the bound of the same unit, where there is one."""

    value: float
    bound: float | None = None
    note: str = ""
    more: Mapping[str, Any] | None = None
    """Further numbers, kept in the file."""
    smaller: bool = False
    """Value and bound are such that smaller is better, as seconds."""

    @property
    def ratio(self) -> float | None:
        """Return how much of the bound was reached."""
        if self.bound is None or not self.value:
            return None
        return self.bound / self.value if self.smaller else self.value / self.bound


def met(row: Row, figure: Figure) -> bool | None:
    """Say whether a figure reaches its row's target; None where there is no target."""
    if row.target is None or row.sense == "none":
        return None
    if row.sense == "share":
        return figure.ratio is not None and figure.ratio >= row.target
    return figure.value <= row.target if row.sense == "most" else figure.value >= row.target


def done(row: Row, figure: Figure, seconds: float) -> dict[str, Any]:
    """Return the file's entry of a row that was measured."""
    return {
        "name": row.name,
        "title": row.title,
        "value": figure.value,
        "unit": row.unit,
        "sense": row.sense,
        "target": row.target,
        "bound": figure.bound,
        "ratio": figure.ratio,
        "met": met(row, figure),
        "note": figure.note,
        "seconds": seconds,
        **({"more": dict(figure.more)} if figure.more else {}),
    }


def finish(row: Row, why: str, *, failed: bool) -> dict[str, Any]:
    """Return the entry of a row without a figure; ``failed`` rows are not tried again."""
    entry = done(row, Figure(0.0), 0.0)
    return {**entry, "value": None, "ratio": None, "met": None, "note": why, "failed": failed}


def chosen(rows: Sequence[Row], asked: str) -> list[Row]:
    """Return the rows that ``asked`` names, comma-separated, by name or beginning; all if empty.

    Raises:
        ConfigError: a name fits no row.
    """
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if not any(row.name.startswith(name) for row in rows):
            raise ConfigError(
                f"There is no row {name!r}.",
                remedy=f"Use some of {', '.join(row.name for row in rows)}.",
            )
    return [row for row in rows if not names or any(row.name.startswith(name) for name in names)]


def keep(found: Mapping[str, Any] | None, key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier file that still count: same machine, sources and settings."""
    if found is None or found.get("key") != dict(key):
        return []
    return [dict(row) for row in found.get("rows", []) if row["value"] is not None]


@dataclass(slots=True)
class Plan:
    """What is left to measure within a time.

    Args:
        rows: what was asked for, in order.
        entries: what is known already, by name.
        until: the end, in the clock's seconds.
    """

    rows: Sequence[Row]
    entries: dict[str, dict[str, Any]]
    until: float

    def left(self) -> list[Row]:
        """Return the rows that have no entry yet."""
        return [row for row in self.rows if row.name not in self.entries]

    def fitting(self, now: float, scale: float = 1.0) -> list[Row]:
        """Return the rows that are likely to end in time; a short one may overtake a long one.

        ``scale`` is what their seconds are multiplied with.
        """
        time, fits = now, []
        for row in self.left():
            if time + scale * row.seconds <= self.until:
                fits.append(row)
                time += scale * row.seconds
        return fits

    def ordered(self) -> list[dict[str, Any]]:
        """Return the entries in the order of the rows, others after them."""
        names = [row.name for row in self.rows]
        others = [name for name in self.entries if name not in names]
        return [self.entries[name] for name in [*names, *others] if name in self.entries]


def table_row(entry: Mapping[str, Any]) -> list[str]:
    """Return an entry as cells: title, value, target, share of the bound, verdict."""
    if entry["value"] is None:
        return [entry["title"], "-", _target(entry), "-", entry["note"]]
    ratio = "-" if entry["ratio"] is None else f"{entry['ratio']:.0%}"
    verdict = {True: "met", False: "missed", None: ""}[entry["met"]]
    note = f"{verdict}; {entry['note']}" if verdict and entry["note"] else verdict or entry["note"]
    return [entry["title"], _value(entry["value"], entry["unit"]), _target(entry), ratio, note]


def _target(entry: Mapping[str, Any]) -> str:
    target, sense = entry["target"], entry["sense"]
    if target is None:
        return "-"
    if sense == "share":
        return f"≥ {target:.0%} of the bound"
    return f"{'≤' if sense == 'most' else '≥'} {_value(target, entry['unit'])}"


def _value(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {unit}"


def failures(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of rows that broke."""
    return [entry["name"] for entry in entries if entry.get("failed")]
