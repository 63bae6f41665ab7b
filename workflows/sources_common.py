"""What every source shares: files that are found, failures that are named, rows that are cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentrt.workflows.queries_model import (
    BoundQuery,
    Control,
    QueryFailed,
    QueryResult,
    QueryTimeout,
)

__all__ = ["MOST_BYTES", "failed", "limited", "source_file", "stopped", "unique_names"]

MOST_BYTES = 64 * 2**20
"""How many bytes of cells one answer may hold."""


def source_file(bound: BoundQuery) -> Path:
    """Return the file of a source, relative paths taken from the templates' folder.

    Raises:
        QueryFailed: it is not there, or no regular file.
    """
    path = bound.source.base / str(bound.source.settings["path"])
    if not path.is_file():
        raise QueryFailed(
            f"{bound.query.name}: the source {bound.source.name!r} has no file {path}.",
            remedy="Correct the path in the query file.",
        )
    return path


def failed(bound: BoundQuery, what: object, remedy: str) -> QueryFailed:
    """Return the failure of a query, with the source's own words."""
    text = " ".join(str(what).split())[:500]
    return QueryFailed(f"{bound.query.name}: {text}.", remedy=remedy)


def stopped(bound: BoundQuery, control: Control) -> QueryTimeout:
    """Return the error of a query that was interrupted."""
    if control.cancelled.is_set():
        return QueryTimeout(f"{bound.query.name} was cancelled.", remedy="Run the step again.")
    return QueryTimeout(
        f"{bound.query.name} was stopped after {control.limit:g} s.",
        remedy="Ask for less, or raise the query's time_limit.",
    )


def limited(
    bound: BoundQuery, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> QueryResult:
    """Return rows up to ``row_limit`` and ``MOST_BYTES``, and whether there was another."""
    kept: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        size += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
        if len(kept) == bound.query.row_limit or size > MOST_BYTES:
            return QueryResult(tuple(columns), tuple(kept), truncated=True)
        kept.append(tuple(row))
    return QueryResult(tuple(columns), tuple(kept))


def unique_names(names: Iterable[str]) -> list[str]:
    """Return column names with a number behind each that occurs again."""
    made: list[str] = []
    for name in names:
        candidates = (name if count == 1 else f"{name}_{count}" for count in itertools.count(1))
        made.append(next(candidate for candidate in candidates if candidate not in made))
    return made
