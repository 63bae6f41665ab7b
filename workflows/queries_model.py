"""What a query template, its parameters and its answer are, and how a query can fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentrt.errors import AgentRTError, GuideError

__all__ = [
    "BadArgument",
    "BoundQuery",
    "Control",
    "Query",
    "QueryFailed",
    "QueryKind",
    "QueryParameter",
    "QueryResult",
    "QueryTimeout",
    "QueryValue",
    "Source",
    "template_error",
]

QueryKind: TypeAlias = Literal["sql", "promql", "pattern", "contains"]
QueryValue: TypeAlias = str | int | float | bool | None


class QueryFailed(AgentRTError, RuntimeError):
    """A query has no answer: its source refused it, is not there, or answered nonsense."""


class BadArgument(QueryFailed, ValueError):
    """A value for a query's parameter is missing, unknown, or not what the parameter takes."""


class QueryTimeout(QueryFailed, TimeoutError):
    """A query outran its time limit, or was cancelled, and was stopped."""


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A typed input of a query. ``type`` is string, integer, number, boolean, timestamp, duration.

    ``minimum`` and ``maximum`` bound an integer or a number; ``choices`` are the only texts that
    are taken; ``max_length`` counts characters. ``format`` is how a timestamp reaches the source:
    ``iso`` (``2026-03-01T10:00:00Z``), ``space`` (``2026-03-01 10:00:00``), ``epoch`` (seconds) or
    ``epoch_ms``; all of them UTC.
    """

    name: str
    type: str = "string"
    required: bool = True
    default: QueryValue = None
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    max_length: int = 4096
    format: str = "iso"


@dataclass(frozen=True, slots=True)
class Source:
    """Where queries are answered. ``type`` is sqlite, postgres, prometheus, log or recorded.

    ``settings`` are the source's own; ``base`` is the folder that relative paths start from.
    """

    name: str
    type: str
    settings: Mapping[str, Any]
    base: Path = Path()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Query:
    """A query template. ``text`` is SQL, PromQL, a regular expression or a plain text by ``kind``.

    ``start`` and ``end`` bound the time of a log or PromQL query, ``step`` is the latter's
    resolution: each a value or a ``{parameter}``. At most ``row_limit`` rows are kept, and the
    source has ``time_limit`` seconds. ``line`` is where the template starts in its file.
    """

    name: str
    source: str
    kind: QueryKind
    text: str
    description: str = ""
    parameters: tuple[QueryParameter, ...] = ()
    start: str = ""
    end: str = ""
    step: str = ""
    ignore_case: bool = False
    row_limit: int = 10_000
    time_limit: float = 10.0
    line: int = 0

    def parameter(self, name: str) -> QueryParameter | None:
        """Return the parameter of this name, or None."""
        return next((each for each in self.parameters if each.name == name), None)


@dataclass(frozen=True, slots=True)
class BoundQuery:
    """A query with its values, ready to be run.

    ``values`` are bound to SQL by the database itself; ``statement`` is the SQL unchanged, or the
    PromQL or pattern with its values escaped into it. ``start``, ``end`` and ``step`` are as the
    source takes them.
    """

    query: Query
    source: Source
    values: Mapping[str, QueryValue]
    statement: str
    start: str = ""
    end: str = ""
    step: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what is asked: equal for equal questions."""
        asked = self.describe()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what is asked, as JSON values for a log or a report; no secrets are in it."""
        window = {"start": self.start, "end": self.end, "step": self.step}
        return {
            "query": self.query.name,
            "source": self.source.name,
            "source_type": self.source.type,
            "kind": self.query.kind,
            "statement": self.statement,
            "parameters": dict(self.values),
            **{key: value for key, value in window.items() if value},
        }


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a source answered: ``rows`` of as many cells as ``columns``, in the source's order.

    ``truncated`` says that there were more rows, or that reading stopped at a size limit.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """How a running query is stopped: at ``limit`` seconds, or when ``cancelled`` is set."""

    limit: float
    clock: Callable[[], float]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def deadline(self) -> Callable[[], bool]:
        """Start the clock; the function returned says whether to stop."""
        last = self.clock() + self.limit
        return lambda: self.cancelled.is_set() or self.clock() > last


def template_error(path: str, line: int, message: str, remedy: str) -> GuideError:
    """Return the error of a template file, naming file and line."""
    where = f"{path or 'queries'}:{line}" if line else path or "queries"
    return GuideError(f"{where}: {message}", remedy=remedy)
