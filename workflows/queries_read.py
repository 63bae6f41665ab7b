"""A file of query templates, read and checked: everything wrong with it is found here."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from agentrt.errors import GuideError
from agentrt.workflows.queries_model import (
    BadArgument,
    Query,
    QueryKind,
    QueryParameter,
    Source,
    template_error,
)
from agentrt.workflows.queries_sql import check_statement, placeholders
from agentrt.workflows.queries_text import (
    check_pattern,
    check_promql,
    names_in,
    pattern_pieces,
    promql_pieces,
)
from agentrt.workflows.queries_values import TIMESTAMP_FORMATS, TYPES, convert, duration_seconds

__all__ = ["SOURCE_KINDS", "check_source", "read_templates"]

SOURCE_KINDS: Mapping[str, tuple[str, ...]] = {
    "sqlite": ("sql",),
    "postgres": ("sql",),
    "prometheus": ("promql",),
    "log": ("pattern", "contains"),
    "recorded": ("sql", "promql", "pattern", "contains"),
}
"""What kinds of query each type of source answers."""

_SOURCE_SETTINGS = {
    "sqlite": ("path",),
    "postgres": ("dsn", "dsn_env"),
    "prometheus": ("url", "token_env"),
    "log": ("path", "encoding"),
    "recorded": ("path",),
}
_QUERY_SETTINGS = frozenset(
    ("source", "description", "parameters", "start", "end", "step", "ignore_case")
) | {"row_limit", "time_limit"}
_NAME = re.compile(r"[A-Za-z_]\w*")
_LONGEST_TIME, _MOST_ROWS = 3600.0, 1_000_000


def read_templates(text: str, path: str) -> tuple[dict[str, Source], dict[str, Query]]:
    """Return the sources and queries of a template file, by name.

    Raises:
        GuideError: something in it is wrong; names file and line.
    """
    data = _parsed(text, path)
    for key in data:
        if key not in ("source", "query"):
            raise template_error(
                path, _line(text, key), f"There is no section {key!r}.", "Use source and query."
            )
    sources = {
        name: check_source(name, settings, path, _line(text, "source", name))
        for name, settings in _table(data.get("source", {}), path, 0, "source").items()
    }
    queries = {
        name: _QueryReader(name, settings, path, _line(text, "query", name)).read(sources)
        for name, settings in _table(data.get("query", {}), path, 0, "query").items()
    }
    return sources, queries


def check_source(name: str, settings: Any, path: str, line: int) -> Source:
    """Return a source of its settings.

    Raises:
        GuideError: its type is unknown, or a setting is missing or unknown.
    """
    table = dict(_table(settings, path, line, f"source.{name}"))
    kind = table.pop("type", None)
    if kind not in _SOURCE_SETTINGS:
        known = ", ".join(_SOURCE_SETTINGS)
        raise template_error(
            path, line, f"The source {name!r} has the type {kind!r}.", f"It is one of: {known}."
        )
    allowed = _SOURCE_SETTINGS[kind]
    for key, value in table.items():
        if key not in allowed or not isinstance(value, str):
            raise template_error(
                path, line, f"{key!r} of the source {name!r} is no setting of a {kind} source.",
                f"It takes, as texts: {', '.join(allowed)}.",
            )  # fmt: skip
    if not set(allowed[:2]) & set(table) or (kind != "postgres" and allowed[0] not in table):
        raise template_error(
            path, line, f"The source {name!r} does not say where it is.", f"Add {allowed[0]!r}."
        )
    return Source(name, kind, table, Path(path).parent, line)


class _QueryReader:
    """Reads one query; each method checks one aspect of it."""

    def __init__(self, name: str, settings: Any, path: str, line: int) -> None:
        self.name, self.path, self.line = name, path, line
        self.table = _table(settings, path, line, f"query.{name}")

    def error(self, message: str, remedy: str) -> GuideError:
        return template_error(self.path, self.line, f"The query {self.name!r}: {message}.", remedy)

    def read(self, sources: Mapping[str, Source]) -> Query:
        source = self._source(sources)
        kind = self._kind(source)
        query = Query(
            name=self.name,
            source=source.name,
            kind=kind,
            text=self._text(kind).strip("\n") if kind != "contains" else self._text(kind),
            description=self._text("description", ""),
            parameters=tuple(self._parameters()),
            start=self._text("start", ""),
            end=self._text("end", ""),
            step=self._text("step", "30s"),
            ignore_case=bool(self.table.get("ignore_case", False)),
            row_limit=int(self._bounded("row_limit", 10_000, _MOST_ROWS)),
            time_limit=self._bounded("time_limit", 10.0, _LONGEST_TIME),
            line=self.line,
        )
        self._check(query, source)
        return query

    def _source(self, sources: Mapping[str, Source]) -> Source:
        if not _NAME.fullmatch(self.name):
            raise self.error("its name is not made of letters, digits and _", "Rename it.")
        known = ", ".join(sources) or "none"
        wanted = self.table.get("source", next(iter(sources)) if len(sources) == 1 else None)
        if wanted not in sources:
            raise self.error(f"its source {wanted!r} is not there", f"The file has: {known}.")
        return sources[wanted]

    def _kind(self, source: Source) -> QueryKind:
        given = [kind for kind in get_args(QueryKind) if kind in self.table]
        unknown = sorted(set(self.table) - _QUERY_SETTINGS - set(given))
        if unknown:
            known = ", ".join(sorted(_QUERY_SETTINGS))
            raise self.error(f"{unknown[0]!r} is no setting", f"Beside its text it takes: {known}.")
        fitting = SOURCE_KINDS[source.type]
        if len(given) != 1 or given[0] not in fitting:
            has = " and ".join(given) or "no text"
            wanted = " or ".join(fitting)
            raise self.error(f"it has {has}", f"A {source.type} source takes one {wanted}.")
        kind: QueryKind = given[0]
        return kind

    def _text(self, key: str, default: str | None = None) -> str:
        value = self.table.get(key, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.error(f"{key!r} is no text", "Write it in quotes.")
        return value

    def _bounded(self, key: str, default: float, most: float) -> float:
        value = self.table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.error(f"{key} is {value!r}", f"It is more than 0 and at most {most:g}.")
        return float(value)

    def _parameters(self) -> list[QueryParameter]:
        table = self.table.get("parameters", {})
        where = f"query.{self.name}.parameters"
        rows = _table(table, self.path, self.line, where)
        return [self._parameter(name, settings) for name, settings in rows.items()]

    def _parameter(self, name: str, settings: Any) -> QueryParameter:
        row = {"type": settings} if isinstance(settings, str) else dict(settings)
        fields = set(QueryParameter.__dataclass_fields__) - {"name"}
        unknown = sorted(set(row) - fields)
        if unknown or not _NAME.fullmatch(name):
            what = f"{unknown[0]!r} is no setting of the parameter" if unknown else "the name of"
            raise self.error(f"{what} {name!r}", f"A parameter takes: {', '.join(sorted(fields))}.")
        row.setdefault("required", "default" not in row)
        row["choices"] = tuple(str(choice) for choice in row.get("choices", ()))
        made = QueryParameter(name=name, **row)
        self._check_parameter(made)
        return made

    def _check_parameter(self, parameter: QueryParameter) -> None:
        if parameter.type not in TYPES:
            known = ", ".join(TYPES)
            what = f"{parameter.name!r} has the type {parameter.type!r}"
            raise self.error(what, f"It is one of: {known}.")
        if parameter.format not in TIMESTAMP_FORMATS:
            known = ", ".join(TIMESTAMP_FORMATS)
            what = f"{parameter.name!r} has the format {parameter.format!r}"
            raise self.error(what, f"It is one of: {known}.")
        numeric = parameter.type in ("integer", "number")
        if not numeric and (parameter.minimum, parameter.maximum) != (None, None):
            raise self.error(f"{parameter.name!r} is no number but has bounds", "Remove them.")
        if parameter.default is None:
            return
        try:
            convert(parameter, parameter.default)
        except BadArgument as error:
            raise self.error(f"a default is wrong: {error.message}", error.remedy) from error

    def _check(self, query: Query, source: Source) -> None:
        parameters = {parameter.name: parameter for parameter in query.parameters}
        problem, used = _inspect(query, source, parameters)
        if problem:
            raise self.error(problem, "Change the template.")
        path = source.settings.get("path", "")
        used = [*used, *names_in(query.start + query.end + query.step + path)]
        for name in used:
            if name not in parameters:
                raise self.error(
                    f"{name!r} is used but not declared",
                    f"Add it to query.{query.name}.parameters.",
                )
        for name in parameters:
            if name not in used:
                raise self.error(f"{name!r} is declared but not used", "Use it or remove it.")
        self._check_step(query)

    def _check_step(self, query: Query) -> None:
        if query.kind == "promql" and "{" not in query.step:
            try:
                duration_seconds(query.step)
            except ValueError as error:
                raise self.error(f"the step {query.step!r}: {error}", "Write 30s or 5m.") from None
        if query.kind == "promql" and query.start and not query.end:
            raise self.error("a range has a start and an end", "Add end.")


def _inspect(
    query: Query, source: Source, parameters: Mapping[str, QueryParameter]
) -> tuple[str | None, list[str]]:
    """Return what is wrong with the text of a query, and the parameters it uses."""
    if query.kind == "sql":
        dialect = "postgres" if source.type == "postgres" else "sqlite"
        return check_statement(query.text, dialect), placeholders(query.text)
    if query.kind == "contains":
        return None, names_in(query.text)
    split = promql_pieces if query.kind == "promql" else pattern_pieces
    pieces = split(query.text)
    used = [piece.name for piece in pieces if piece.name]
    if query.kind == "promql":
        return check_promql(pieces, parameters), used
    return check_pattern(pieces, query.text), used


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        data = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise template_error(path, error.lineno, f"{error.msg}.", "Correct the JSON.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise template_error(path, line, f"{error}.", "Correct the TOML.") from error
    return dict(_table(data, path, 1, "the file"))


def _table(value: Any, path: str, line: int, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise template_error(path, line, f"{what} is no table.", "Write it as [section] key = ….")
    return value


def _line(text: str, *names: str) -> int:
    """Return the line where a section starts, from 1, or 0 where it cannot be told."""
    dotted = r"\s*\.\s*".join(rf"[\"']?{re.escape(name)}[\"']?" for name in names)
    found = re.search(rf"^\s*\[\s*{dotted}\s*[\].]", text, re.MULTILINE)
    found = found or re.search(rf"\"{re.escape(names[-1])}\"\s*:", text)
    return text.count("\n", 0, found.end()) + 1 if found else 0
