"""Answers written down beforehand, for tests and examples of sources that are not at hand.

The file is JSON: by query name one answer, or a list of answers of which the first is given whose
``arguments`` all equal the query's values::

    {"error_rate": {"columns": ["ts", "value"], "rows": [["2026-03-01T10:00:00Z", 0.2]]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrt.workflows.queries_model import BoundQuery, Control, QueryResult
from agentrt.workflows.sources_common import failed, limited, source_file, stopped, unique_names

__all__ = ["ask_recorded"]

_REMEDY = 'Write {"query": {"columns": [...], "rows": [[...]]}}.'


def ask_recorded(bound: BoundQuery, control: Control) -> QueryResult:
    """Answer a query from a recording.

    Raises:
        QueryTimeout: it was cancelled.
        QueryFailed: the file cannot be read, or has no answer to this query with these values.
    """
    if control.deadline()():
        raise stopped(bound, control)
    path = source_file(bound)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise failed(bound, f"the recording {path} cannot be read: {error}", _REMEDY) from error
    found = data.get(bound.query.name) if isinstance(data, dict) else None
    for entry in found if isinstance(found, list) else [found]:
        if isinstance(entry, dict) and _fits(entry, bound):
            return _answer(bound, entry)
    raise failed(bound, f"{path.name} has no answer to {dict(bound.values)}", "Record one.")


def _fits(entry: Mapping[str, Any], bound: BoundQuery) -> bool:
    wanted = entry.get("arguments", {})
    return all(bound.values.get(name) == value for name, value in wanted.items())


def _answer(bound: BoundQuery, entry: Mapping[str, Any]) -> QueryResult:
    columns, rows = entry.get("columns"), entry.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise failed(bound, "the recorded answer has no columns or no rows", _REMEDY)
    if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        raise failed(bound, "a recorded row has not one cell per column", _REMEDY)
    return limited(bound, unique_names(str(name) for name in columns), rows)
