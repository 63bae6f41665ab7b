"""What a handle is and how it is made of rows. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentrt.errors import AgentRTError
from agentrt.workflows.data_values import Scalar, column_type, shown, to_scalar

__all__ = ["Column", "DataError", "Handle", "Row", "dataset_texts", "describe", "summary_lines"]

Row: TypeAlias = tuple[Scalar, ...]

# Together these keep a handle small enough for an event of a log (256 KiB).
MOST_COLUMNS = 200
LONGEST_NAME = 128
_LONGEST_SAMPLE_CELL = 160


class DataError(AgentRTError, OSError):
    """Stored data cannot be written or read: a full disk, a damaged file, an unknown handle."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``type`` is integer, number, boolean, timestamp, text, null or mixed.

    ``low`` and ``high`` are the smallest and largest value of an integer, number or timestamp
    column; ``nulls`` counts the cells without a value.
    """

    name: str
    type: str
    nulls: int = 0
    low: Scalar = None
    high: Scalar = None


@dataclass(frozen=True, slots=True)
class Handle:
    """What is known of a table without reading it.

    ``digest`` is the SHA-256 of column names and rows; ``truncated`` says that its source held
    more rows than were kept; ``sample`` is every row of three or fewer, else the first two and
    the last, with long texts cut.
    """

    id: str
    name: str
    columns: tuple[Column, ...]
    rows: int
    digest: str
    truncated: bool
    sample: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the handle as JSON values; :meth:`from_json` reads it back."""
        return {
            "id": self.id,
            "name": self.name,
            "columns": [_column_json(column) for column in self.columns],
            "rows": self.rows,
            "digest": self.digest,
            "truncated": self.truncated,
            "sample": [[_json_cell(cell) for cell in row] for row in self.sample],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Handle:
        """Return the handle that :meth:`to_json` wrote.

        Raises:
            DataError: ``data`` is not one.
        """
        try:
            columns = tuple(_column(row) for row in data["columns"])
            sample = tuple(tuple(_cell(cell) for cell in row) for row in data["sample"])
            texts = (str(data["id"]), str(data["name"]), str(data["digest"]))
            rows, truncated = int(data["rows"]), bool(data["truncated"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"This is not a data handle: {error!r}.", remedy="Take it from the run's log."
            ) from error
        return cls(texts[0], texts[1], columns, rows, texts[2], truncated, sample)


def describe(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], truncated: bool
) -> tuple[Handle, list[str]]:
    """Return the handle of a table, and its rows as the JSON texts that are stored and digested.

    Raises:
        DataError: a row of another length than ``columns``, or a column name twice.
    """
    name = str(to_scalar(name))
    names = [str(to_scalar(column)) for column in columns]
    if len(names) > MOST_COLUMNS or any(len(column) > LONGEST_NAME for column in names):
        raise DataError(
            f"The result {name!r} has {len(names)} columns or a very long column name.",
            remedy=f"At most {MOST_COLUMNS} columns, {LONGEST_NAME} characters a name.",
        )
    if len(set(names)) != len(names):
        raise DataError(
            f"The result {name!r} has a column name twice: {', '.join(names)}.",
            remedy="Give the columns of the query different names with AS.",
        )
    kept = [_row(name, names, position, row) for position, row in enumerate(rows)]
    encoded = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in kept]
    digest = _digest(names, encoded)
    described = tuple(
        _profile(column, [row[position] for row in kept]) for position, column in enumerate(names)
    )
    shown_rows = kept if len(kept) <= 3 else [*kept[:2], kept[-1]]
    sample = tuple(tuple(_short(cell) for cell in row) for row in shown_rows)
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:40] or "data"
    suffix = "-part" if truncated else ""
    mark = hashlib.sha256(f"{name}\0{digest}".encode()).hexdigest()[:12]
    handle_id = f"{slug}-{mark}{suffix}"
    return Handle(handle_id, name, described, len(kept), digest, truncated, sample), encoded


def _row(name: str, names: Sequence[str], position: int, row: Sequence[Any]) -> Row:
    cells = tuple(to_scalar(cell) for cell in row)
    if len(cells) != len(names):
        raise DataError(
            f"Row {position} of {name!r} has {len(cells)} cells for {len(names)} columns.",
            remedy="Every row must have one cell per column.",
        )
    return cells


def _short(cell: Scalar) -> Scalar:
    if not isinstance(cell, str) or len(cell) <= _LONGEST_SAMPLE_CELL:
        return cell
    return cell[: _LONGEST_SAMPLE_CELL - 1] + "…"


def _digest(names: Sequence[str], encoded: Iterable[str]) -> str:
    mark = hashlib.sha256(json.dumps(list(names)).encode())
    for row in encoded:
        mark.update(b"\n" + row.encode())
    return mark.hexdigest()


def _profile(name: str, values: Sequence[Scalar]) -> Column:
    kind = column_type(values)
    present: list[Any] = [value for value in values if value is not None]
    if kind not in ("integer", "number", "timestamp"):
        return Column(name, kind, len(values) - len(present))
    return Column(name, kind, len(values) - len(present), min(present), max(present))


def summary_lines(handle: Handle) -> Iterator[str]:
    """Yield the lines that tell a reader what a table is: counts, columns, sample."""
    more = ", truncated: the source has more rows" if handle.truncated else ""
    counts = f"{handle.rows} rows x {len(handle.columns)} columns"
    yield f"data {handle.id} ({shown(handle.name)}): {counts}{more}"
    for column in handle.columns:
        span = "" if column.low is None else f", {shown(column.low)} .. {shown(column.high)}"
        nulls = f", {column.nulls} without value" if column.nulls else ""
        yield f"- {shown(column.name)}: {column.type}{span}{nulls}"
    if handle.sample:
        which = "all rows" if handle.rows <= 3 else "first 2 rows and the last"
        yield f"{which}:"
    for row in handle.sample:
        yield "  " + " | ".join(shown(cell) for cell in row)


def dataset_texts(handle: Handle) -> tuple[str, int, str]:
    """Return columns, row count and sample of a handle as they are stored."""
    data = handle.to_json()
    return json.dumps(data["columns"]), handle.rows, json.dumps(data["sample"])


def _column_json(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "nulls": column.nulls,
        "low": _json_cell(column.low),
        "high": _json_cell(column.high),
    }


def _column(data: Mapping[str, Any]) -> Column:
    low, high = _cell(data["low"]), _cell(data["high"])
    return Column(str(data["name"]), str(data["type"]), int(data["nulls"]), low, high)


def _json_cell(cell: Scalar) -> Any:
    """Return a cell as strict JSON: an infinite number, which JSON has not, in an object."""
    if isinstance(cell, float) and math.isinf(cell):
        return {"number": "inf" if cell > 0 else "-inf"}
    return cell


def _cell(value: Any) -> Scalar:
    if isinstance(value, Mapping):
        return float(value["number"])
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} is no cell")
