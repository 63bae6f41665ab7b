"""Rules on queries: where they are asked, what is written into them, their form (category DI)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agentrt.workflows.lint_model import Document, Finding, LintQuery, LintStep, TextFix, found
from agentrt.workflows.lint_sql import sql_problems
from agentrt.workflows.queries_sql import placeholders
from agentrt.workflows.queries_text import names_in

__all__ = ["database_rules"]

_DATE = re.compile(r"(?<![\d-])(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?!\d)")
_EQUALS = re.compile(r"(?:\w+\.)?\"?(\w+)\"?\s*(?:=|==|<>|!=|IN\s*\(|LIKE)\s*'([^':{][^']*)'", re.I)
_MATCHER = re.compile(r"\b(\w+)\s*(?:=|=~|!=|!~)\s*[\"']([^\"'{}]+)[\"']")
_PROM_TIME = re.compile(r"(?<![\w.])(time|hour|minute|day_of_week|day_of_month)\s*\(\s*\)")
_SUGGEST = {
    "sql-syntax": "Correct the statement.",
    "sql-not-read-only": "Ask with one SELECT; do changes in a command.",
    "nondeterministic-query": "Pass the incident's time as a parameter; order by a column.",
    "wrong-dialect": "Use what the source's database knows.",
    "quoted-placeholder": "Write the placeholder without quotes.",
    "unknown-column": "Correct the name, or the schema.",
}


def database_rules(document: Document) -> Iterator[Finding]:
    """Check queries and their uses."""
    if document.queries is not None:
        for step in document.steps:
            yield from _unknown(document, step)
        for query in document.queries.values():
            yield from _source(document, query)
            yield from _literals(document, query)
            yield from _statement(document, query)
            yield from _placeholders(document, query)
    for step in document.steps:
        yield from _dates_in_prose(step)
        yield from _given(document, step)


def _at(query: LintQuery, line: int) -> dict[str, str]:
    return {"path": query.path}


def _unknown(document: Document, step: LintStep) -> Iterator[Finding]:
    for use in step.uses:
        if use.query not in (document.queries or {}):
            yield found(
                "unknown-query",
                use.line,
                f"There is no query `{use.query}`.",
                f"Write it to the query file, or use one of: {', '.join(document.queries or {})}.",
            )


def _source(document: Document, query: LintQuery) -> Iterator[Finding]:
    if document.stepfly:
        return
    if not query.source:
        problem = f"The query {query.name} does not say where it is asked."
    elif query.source not in document.sources:
        problem = f"The query {query.name} is asked at {query.source!r}, which is not there."
    elif not any(document.sources[query.source].get(k) for k in ("path", "dsn", "dsn_env", "url")):
        problem = f"The source {query.source!r} of {query.name} does not say where it is."
    else:
        return
    yield found(
        "missing-source",
        query.line,
        problem,
        "Add source = 'NAME' and a [source.NAME] with type and path, url or dsn_env.",
        path=query.path,
    )


def _literals(document: Document, query: LintQuery) -> Iterator[Finding]:
    names = set(document.parameters) | set(query.parameters)
    pattern = _EQUALS if query.kind == "sql" else _MATCHER
    for at, text in enumerate(query.text.splitlines()):
        line = query.text_line + at
        if match := _DATE.search(text):
            yield _date(line, match[0], query.path)
        for match in pattern.finditer(text):
            if match[1] in names and not _DATE.search(match[2]):
                yield found(
                    "hard-coded-parameter",
                    line,
                    f"{match[1]} is {match[2]!r} in {query.name}, whatever the parameter says.",
                    f"Write :{match[1]} ({{{match[1]}}} outside SQL).",
                    path=query.path,
                )


def _date(line: int, text: str, path: str) -> Finding:
    return found(
        "hard-coded-date",
        line,
        f"The date {text} is written out.",
        "Make it a parameter of type timestamp.",
        path=path,
    )


def _statement(document: Document, query: LintQuery) -> Iterator[Finding]:
    if query.kind == "promql" and (match := _PROM_TIME.search(query.text)):
        line = query.text_line + query.text.count("\n", 0, match.start())
        message = f"{match[0]} differs from run to run."
        yield found(
            "nondeterministic-query", line, message, "Use end and step instead.", path=query.path
        )
    if query.kind != "sql":
        return
    text = query.text
    if document.stepfly:
        # A field within quotes is no finding here: StepFly pastes values into the text.
        text = re.sub(r"'\{(\w+)\}'", r":\1", text)
        text = re.sub(r"\{(\w+)\}", r":\1", text)
    schema = document.schema.get(query.source or "", document.schema.get("", ""))
    for problem in sql_problems(text, query.dialect, schema):
        line = query.text_line + problem.offset
        suggestion = _SUGGEST[problem.rule]
        yield found(problem.rule, line, problem.message, suggestion, path=query.path)


def _placeholders(document: Document, query: LintQuery) -> Iterator[Finding]:
    if document.stepfly:
        return
    if query.kind == "sql":
        used = [*placeholders(query.text), *_quoted(query.text)]
        for name in names_in(query.text):
            yield _formatted(document, query, name)
        used += names_in(query.text)
    else:
        used = [*names_in(query.text), *names_in(query.extra)]
    for name in dict.fromkeys(used):
        if name not in query.parameters:
            yield _missing(query, f"{query.name} has a placeholder {name} and no such parameter.")
    for name in query.parameters:
        if name not in used:
            yield _missing(query, f"{query.name} takes {name} and does not use it.")


def _quoted(text: str) -> list[str]:
    return re.findall(r"':([A-Za-z_]\w*)'", text)


def _missing(query: LintQuery, message: str) -> Finding:
    return found(
        "missing-placeholder",
        query.line,
        message,
        "Let the placeholders and the parameters of the query be the same.",
        path=query.path,
    )


def _formatted(document: Document, query: LintQuery, name: str) -> Finding:
    line = next((at for at, text in enumerate(query.text.splitlines()) if f"{{{name}}}" in text), 0)
    return found(
        "quoted-placeholder",
        query.text_line + line,
        f"{{{name}}} is not filled in within SQL.",
        f"Write :{name}, without quotes.",
        path=query.path,
    )


def _dates_in_prose(step: LintStep) -> Iterator[Finding]:
    for line, text in (*step.prose, *step.command):
        if match := _DATE.search(text):
            yield _date(line, match[0], "")
    for link in step.links:
        if match := _DATE.search(link.condition):
            yield _date(link.line, match[0], "")


def _given(document: Document, step: LintStep) -> Iterator[Finding]:
    """Fixed arguments for what is a parameter of the guide, and dates among them."""
    for use in step.uses:
        for name, value in use.arguments.items():
            if match := _DATE.search(value):
                yield _date(use.line, match[0], "")
            elif name in document.parameters and value.strip("\"'{}") == value.strip("\"'"):
                whole = document.line(use.line)
                plain = value.strip("\"'")
                if plain in document.parameters or plain == "item":
                    continue
                fixed = whole.replace(f"{name}={value}", f"{name}={{{name}}}")
                yield found(
                    "hard-coded-parameter",
                    use.line,
                    f"{name} is {plain!r} here, whatever the parameter says.",
                    f"Write {name}={{{name}}}, or nothing.",
                    TextFix(use.line, (whole,), (fixed,)),
                )
