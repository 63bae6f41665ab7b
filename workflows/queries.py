"""Queries as data: templates in a TOML or JSON file, typed parameters, values that stay values.

A file has sources and queries::

    [source.telemetry]
    type = "sqlite"
    path = "telemetry.db"

    [query.queue_depth]
    source = "telemetry"
    description = "Depth of every queue of a region"
    sql = "SELECT ts, queue, depth FROM queue_depth WHERE region = :region AND ts >= :start_time"

    [query.queue_depth.parameters]
    start_time = {type = "timestamp"}
    region = {type = "string", default = "eu"}

SQL values are bound by the database; PromQL (``promql``), regular expressions over log lines
(``pattern``) and plain texts in them (``contains``) take ``{name}``, escaped for its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentrt.workflows.queries_model import (
    BadArgument,
    BoundQuery,
    Control,
    Query,
    QueryFailed,
    QueryParameter,
    QueryResult,
    QueryTimeout,
    QueryValue,
    Source,
    template_error,
)
from agentrt.workflows.queries_read import check_source, read_templates
from agentrt.workflows.queries_text import fill, plain, render_pattern, render_promql
from agentrt.workflows.queries_values import convert, parse_timestamp
from agentrt.workflows.sources import answer

__all__ = [
    "BadArgument",
    "BoundQuery",
    "Query",
    "QueryFailed",
    "QueryParameter",
    "QueryResult",
    "QueryTemplates",
    "QueryTimeout",
    "Source",
]


class QueryTemplates:
    """The queries of a guide and the sources that answer them. Immutable.

    Attributes:
        path: the file they were read from, or empty.
        sources: by name.
        queries: by name.
    """

    def __init__(
        self, sources: Mapping[str, Source], queries: Mapping[str, Query], *, path: str = ""
    ) -> None:
        self.path = path
        self.sources = dict(sources)
        self.queries = dict(queries)

    @classmethod
    def load(cls, path: str | Path) -> QueryTemplates:
        """Read a ``.toml`` or ``.json`` file of templates and check all of it.

        Raises:
            GuideError: the file is not there, or something in it is wrong; names file and line.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise template_error(
                str(file), 0, f"cannot be read: {error}.", "Check the name of the query file."
            ) from error
        return cls.parse(text, path=str(file))

    @classmethod
    def parse(cls, text: str, *, path: str = "queries.toml") -> QueryTemplates:
        """Read templates from text; ``path`` decides the format and where relative paths start.

        Raises:
            GuideError: something in it is wrong; names file and line.
        """
        sources, queries = read_templates(text, path)
        return cls(sources, queries, path=path)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the queries, in the order of the file."""
        return tuple(self.queries)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every template and source: changes when a query could answer otherwise."""
        parts: list[Any] = [dataclasses.asdict(query) for query in self.queries.values()]
        parts += [[each.name, each.type, dict(each.settings)] for each in self.sources.values()]
        for part in parts[: len(self.queries)]:
            part.pop("line")
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def with_sources(self, sources: Mapping[str, Mapping[str, Any]]) -> QueryTemplates:
        """Return the same queries on other sources, such as recordings for a test.

        ``sources`` gives, by name, what a ``[source.NAME]`` table would hold; relative paths start
        from the templates' folder.

        Raises:
            GuideError: a source is unknown or wrong.
        """
        unknown = sorted(set(sources) - set(self.sources))
        if unknown:
            raise template_error(
                self.path, 0, f"There is no source {unknown[0]!r} to replace.", self._known()
            )
        made = {
            name: check_source(name, settings, self.path, 0) for name, settings in sources.items()
        }
        return QueryTemplates({**self.sources, **made}, self.queries, path=self.path)

    def query(self, name: str) -> Query:
        """Return a query by name.

        Raises:
            GuideError: there is none; names those that are.
        """
        if name not in self.queries:
            known = ", ".join(self.queries) or "none"
            raise template_error(
                self.path, 0, f"There is no query {name!r}.", f"The file has: {known}."
            )
        return self.queries[name]

    def bind(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        context: Mapping[str, Any] | None = None,
    ) -> BoundQuery:
        """Return a query with checked values.

        ``arguments`` are meant for this query: one it does not declare is an error. ``context``
        holds what else is known, such as the guide's parameters: only what is declared is taken.

        Raises:
            GuideError: there is no such query.
            BadArgument: a value is missing, unknown or not what the parameter takes.
        """
        query = self.query(name)
        given = dict(arguments or {})
        declared = {parameter.name for parameter in query.parameters}
        for extra in sorted(set(given) - declared):
            known = ", ".join(sorted(declared)) or "no parameters"
            raise BadArgument(f"{name} takes no {extra!r}.", remedy=f"It takes: {known}.")
        known_values = {**(context or {}), **given}
        values = {
            each.name: convert(each, known_values.get(each.name)) for each in query.parameters
        }
        return _bound(query, self.sources[query.source], values)

    def run(
        self,
        bound: BoundQuery,
        *,
        cancelled: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> QueryResult:
        """Ask the source and wait for its answer; call it in a worker thread.

        It returns or raises within about the query's ``time_limit`` seconds, and soon after
        ``cancelled`` is set.

        Raises:
            QueryTimeout: the limit passed or it was cancelled; the source was told to stop.
            QueryFailed: the source refused, is not there, or answered nonsense.
        """
        control = Control(bound.query.time_limit, clock, cancelled or threading.Event())
        return answer(bound, control)

    def _known(self) -> str:
        return f"The file has: {', '.join(self.sources) or 'none'}."


def _bound(query: Query, source: Source, values: Mapping[str, QueryValue]) -> BoundQuery:
    statements: dict[str, Callable[[Query, Mapping[str, QueryValue]], str]] = {
        "promql": render_promql,
        "pattern": render_pattern,
        "contains": lambda query, values: fill(query.text, values),
        "sql": lambda query, values: query.text,
    }
    return BoundQuery(
        query,
        _placed(source, values),
        values,
        statements[query.kind](query, values),
        start=_moment(query.start, values),
        end=_moment(query.end, values),
        step=fill(query.step, values) if query.kind == "promql" and query.start else "",
    )


def _moment(template: str, values: Mapping[str, QueryValue]) -> str:
    """Return a bound of a time window as ISO-8601 text, or empty where there is none."""
    text = fill(template, values)
    if not text:
        return ""
    try:
        seconds = float(text)
    except ValueError:
        seconds = None
    try:
        moment = parse_timestamp(text if seconds is None else _epoch(seconds))
    except (ValueError, OverflowError) as error:
        raise BadArgument(
            f"The time window has a bound {text!r}: {error}.", remedy="Use a timestamp parameter."
        ) from None
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _epoch(number: float) -> float:
    """Return seconds since 1970; a number too large for them is milliseconds."""
    return number / 1000 if abs(number) > 1e11 else number


def _placed(source: Source, values: Mapping[str, QueryValue]) -> Source:
    """Return the source with parameters filled into its path.

    Raises:
        BadArgument: a value leads out of the folder of the templates.
    """
    path = source.settings.get("path")
    if not isinstance(path, str) or "{" not in path:
        return source
    base = source.base.resolve()
    target = (base / fill(path, values)).resolve()
    if not target.is_relative_to(base) or "\0" in path:
        raise BadArgument(
            f"The path of the source {source.name!r} leads out of {base}: {plain(str(target))}.",
            remedy="A path made from a parameter stays in the folder of the query file.",
        )
    return dataclasses.replace(source, settings={**source.settings, "path": str(target)})
