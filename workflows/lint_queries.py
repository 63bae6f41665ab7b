"""Reads query templates for lint: leniently, with lines; and a guide's companions on disk."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrt.workflows.lint_model import Document, Finding, LintQuery, found
from agentrt.workflows.stepfly_markdown import plugin_blocks

__all__ = ["attach_queries", "attach_stepfly_queries", "read_queries"]

_KINDS = ("sql", "promql", "pattern", "contains")
_DIALECTS = {"sqlite": "sqlite", "postgres": "postgres"}


def attach_queries(document: Document, folder: str) -> list[Finding]:
    """Read the query file that the guide's settings name; return what is wrong with the file."""
    document.folder = folder
    name = document.settings.get("queries")
    uses = [use for step in document.steps for use in step.uses]
    if not name:
        if not uses:
            return []
        return [
            found(
                "missing-source",
                uses[0].line,
                "The guide uses queries and does not say where they are.",
                "Add <!-- guide: queries=queries.toml --> below the title.",
            )
        ]
    path = Path(folder) / name
    if not path.is_file():
        return [
            found(
                "missing-source",
                document.settings_line,
                f"There is no file {name!r}.",
                "Correct the path; it starts from the guide's folder.",
            )
        ]
    try:
        text = path.read_text(encoding="utf-8")
        document.queries = read_queries(text, name, document)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", 0) or _line_in(str(error))
        return [found("sql-syntax", line, f"It cannot be read: {error}.", "Correct it.", path=name)]
    return []


def read_queries(text: str, path: str, document: Document) -> dict[str, LintQuery]:
    """Read a TOML or JSON template file; fills the document's sources.

    Raises:
        ValueError: it is neither.
    """
    data = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    document.sources = {
        name: value for name, value in _tables(data.get("source")) if isinstance(value, Mapping)
    }
    lines = text.splitlines()
    return {
        name: _query(name, table, lines, path, document.sources)
        for name, table in _tables(data.get("query"))
        if isinstance(table, Mapping)
    }


def attach_stepfly_queries(document: Document) -> None:
    """Take the queries that stand in the guide itself."""
    document.queries = {
        f"plugin_{number}": LintQuery(
            f"plugin_{number}", "sql", text, line, line + 1, {}, "guide", "", extra="format"
        )
        for number, text, line in plugin_blocks(document.text)
    }


def _tables(data: Any) -> list[tuple[str, Any]]:
    return list(data.items()) if isinstance(data, Mapping) else []


def _query(
    name: str,
    table: Mapping[str, Any],
    lines: list[str],
    path: str,
    sources: Mapping[str, Mapping[str, object]],
) -> LintQuery:
    kind = next((each for each in _KINDS if each in table), "")
    source = table.get("source")
    head = _header_line(name, lines)
    text = str(table.get(kind, ""))
    dialect = _DIALECTS.get(str(sources.get(str(source), {}).get("type")), "")
    return LintQuery(
        name=name,
        kind=kind,
        text=text,
        line=head,
        text_line=_text_line(kind, head, lines),
        parameters={
            key: isinstance(value, Mapping)
            and bool(value.get("required", "default" not in value))
            and "default" not in value
            for key, value in _tables(table.get("parameters"))
        },
        source=source if isinstance(source, str) else None,
        dialect=dialect,
        extra=" ".join(str(table.get(key, "")) for key in ("start", "end", "step")),
        path=path,
    )


def _header_line(name: str, lines: list[str]) -> int:
    header = re.compile(rf"^\s*\[query\.\"?{re.escape(name)}\"?\]|\"{re.escape(name)}\"\s*:")
    return next((at for at, line in enumerate(lines, 1) if header.search(line)), 1)


def _text_line(kind: str, head: int, lines: list[str]) -> int:
    """The line in which the query's own text starts."""
    for at in range(head, len(lines) + 1):
        line = lines[at - 1].strip()
        if re.match(rf"\"?{kind}\"?\s*[=:]", line):
            return at + 1 if re.search(r"(\"\"\"|''')$", line) else at
    return head


def _line_in(message: str) -> int:
    match = re.search(r"line (\d+)", message)
    return int(match[1]) if match else 1
