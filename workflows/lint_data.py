"""Rules on data: what steps read, parameters, placeholders (category DF)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from agentrt.workflows.lint_model import Document, Finding, LintStep, TextFix, found
from agentrt.workflows.lint_read import PLACEHOLDER, step_numbers
from agentrt.workflows.lint_sql import selected_columns
from agentrt.workflows.predicate import PredicateError, parse_expression
from agentrt.workflows.queries_sql import placeholders
from agentrt.workflows.queries_text import names_in

__all__ = ["data_rules"]

ITEM = "item"
_CODE = re.compile(r"`([A-Za-z_]\w*)(?:\.\w+)?`")
_RESULT = re.compile(
    r"\b(?:results?|outputs?|findings?|answers?|rows|data|values?)\s+(?:of|from)\s+"
    r"(step\s*\d+(?:\.\d+)*)|\b(step\s*\d+(?:\.\d+)*)['’]s\s+(?:results?|output|findings?|answer)"
    r"|\b(?:found|measured|listed|read|counted)\s+in\s+(step\s*\d+(?:\.\d+)*)",
    re.I,
)


def data_rules(document: Document) -> Iterator[Finding]:
    """Check where what steps read comes from."""
    for step in document.steps:
        yield from _predicates(document, step)
        yield from _mentions(document, step)
        yield from _reads(document, step)
        yield from _arguments(document, step)
    yield from _undeclared(document)
    yield from _unused(document)


def _predicates(document: Document, step: LintStep) -> Iterator[Finding]:
    for link in step.links:
        if link.predicate is not None:
            yield from _names(document, step, link.predicate, link.line, own=True)
    if "for each" in step.policy:
        value, line = step.policy["for each"]
        yield from _names(document, step, value.strip("` "), line, own=False)


def _names(
    document: Document, step: LintStep, text: str, line: int, *, own: bool
) -> Iterator[Finding]:
    try:
        names = parse_expression(text).names
    except PredicateError:
        # Told by the rule bad-predicate.
        return
    for name in sorted(names):
        root, _, column = name.partition(".")
        if root in document.parameters or root in (ITEM, "command") or root.startswith("Step"):
            continue
        if problem := _not_asked(document, step, root, own=own):
            yield found("unknown-source", line, *problem)
        elif column:
            yield from _column(document, root, column, line)


def _not_asked(
    document: Document, step: LintStep, query: str, *, own: bool
) -> tuple[str, str] | None:
    """Message and suggestion if neither the step nor one above it runs the query."""
    seen = {
        use.query for each in document.visible(step) if own or each is not step for use in each.uses
    }
    if query in seen:
        return None
    runs = [each.id for each in document.steps if any(use.query == query for use in each.uses)]
    if runs and step.id not in document.reached():
        # That nothing leads to the step is told by the rule unreachable-step.
        return None
    if runs:
        return (
            f"`{query}` runs in {', '.join(runs)}, from which no connections lead to {step.id}.",
            f"Run it in {step.id}, or connect {runs[0]} to it.",
        )
    close = difflib.get_close_matches(query, seen, 1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Add `{query}` to the queries of {step.id}."
    return f"No step runs `{query}`.", hint


def _column(document: Document, query: str, column: str, line: int) -> Iterator[Finding]:
    template = (document.queries or {}).get(query)
    if template is None or template.kind != "sql" or column in ("rows", ITEM):
        return
    columns = selected_columns(template.text)
    if columns is not None and column.lower() not in columns:
        yield found(
            "unknown-column",
            line,
            f"`{query}` answers with {', '.join(sorted(columns))}, not with {column}.",
            "Correct the column, or add it to the query.",
        )


def _mentions(document: Document, step: LintStep) -> Iterator[Finding]:
    """Queries and results that the prose names."""
    known = {use.query for each in document.steps for use in each.uses}
    known |= set(document.queries or {})
    for line, text in step.prose:
        for match in _CODE.finditer(text):
            if match[1] in known - set(document.parameters) and (
                problem := _not_asked(document, step, match[1], own=True)
            ):
                yield found("unknown-source", line, *problem)
        for match in _RESULT.finditer(text):
            source = step_numbers(match[1] or match[2] or match[3])[0]
            if source != step.id and _is_later(document, step, source):
                yield _wrong_source(document, step, source, line)


def _reads(document: Document, step: LintStep) -> Iterator[Finding]:
    value, line = step.policy.get("reads", ("", 0))
    for source in step_numbers(value):
        if _is_later(document, step, source):
            yield _wrong_source(document, step, source, line)
    value, line = step.policy.get("guide", ("", 0))
    if value and document.folder and not (Path(document.folder) / value.strip("` ")).is_file():
        yield found(
            "unknown-source", line, f"There is no guide {value!r}.", "Correct the guide's path."
        )


def _is_later(document: Document, step: LintStep, source: str) -> bool:
    """Whether a step cannot have run before; not for a step that nothing leads to."""
    known = document.step(source) is not None
    apart = known and step.id not in document.reached()
    return source not in document.above(step.id) and not apart


def _wrong_source(document: Document, step: LintStep, source: str, line: int) -> Finding:
    what = "did not run before it" if document.step(source) else "is not in the guide"
    return found(
        "wrong-source",
        line,
        f"{step.id} reads {source}, which {what}.",
        f"Read a step that leads to {step.id}, or connect {source} to it.",
    )


def _arguments(document: Document, step: LintStep) -> Iterator[Finding]:
    for use in step.uses:
        template = (document.queries or {}).get(use.query)
        if template is None or document.stepfly:
            continue
        for name, required in template.parameters.items():
            if required and name not in use.arguments and name not in document.parameters:
                yield found(
                    "missing-parameter",
                    use.line,
                    f"`{use.query}` needs {name}, which the guide does not have.",
                    f"Declare `{name}`, or write `{use.query}` with {name}=VALUE.",
                )
        for name in use.arguments:
            if name not in template.parameters:
                yield found(
                    "unknown-argument",
                    use.line,
                    f"`{use.query}` takes no {name}.",
                    f"It takes: {', '.join(template.parameters) or 'nothing'}.",
                )


def _undeclared(document: Document) -> Iterator[Finding]:
    for line, text, step in _texts(document):
        known = set(document.parameters) | ({ITEM} if step and "for each" in step.policy else set())
        for name in dict.fromkeys(PLACEHOLDER.findall(text)):
            if name in known:
                continue
            close = difflib.get_close_matches(name, document.parameters, 2, 0.8)
            whole = document.line(line)
            fixed = whole.replace(f"{{{name}}}", f"{{{close[0]}}}") if close else ""
            yield found(
                "undeclared-placeholder",
                line,
                f"{{{name}}} is not a parameter of the guide.",
                f"Did you mean {{{close[0]}}}?" if close else f"Declare `{name}` as a parameter.",
                TextFix(line, (whole,), (fixed,)) if len(close) == 1 else None,
            )


def _texts(document: Document) -> Iterator[tuple[int, str, LintStep | None]]:
    """Every line in which placeholders are filled in."""
    for line, text in document.overview:
        yield line, re.sub(r"`[^`]*`", "", text), None
    for step in document.steps:
        for line, text in (*step.prose, *step.command):
            yield line, text, step
        for link in step.links:
            if link.predicate is None:
                yield link.line, link.condition, step
        for use in step.uses:
            query = (document.queries or {}).get(use.query) if document.stepfly else None
            for at, text in enumerate(query.text.splitlines() if query else ()):
                yield (query.text_line if query else 0) + at, text, step
            yield use.line, " ".join(use.arguments.values()), step


def _unused(document: Document) -> Iterator[Finding]:
    used = set(_used(document))
    nested = any("guide" in step.policy for step in document.steps)
    for name, line in document.parameters.items():
        if name not in used and not (nested and _nested_takes(document, name)):
            yield found(
                "unused-parameter",
                line,
                f"`{name}` is declared and never used.",
                f"Use {{{name}}} where it belongs, or remove it.",
                TextFix(line, (document.line(line),), ()) if _one_line(document, line) else None,
            )


def _one_line(document: Document, line: int) -> bool:
    after = document.line(line + 1)
    return not after.strip() or bool(re.match(r"\s*[-*+#]", after))


def _nested_takes(document: Document, name: str) -> bool:
    """Whether a nested guide has a parameter of this name; True where it cannot be read."""
    for step in document.steps:
        value = step.policy.get("guide", ("", 0))[0].strip("` ")
        path = Path(document.folder) / value
        if value and (not path.is_file() or f"`{name}`" in path.read_text("utf-8", "replace")):
            return True
    return False


def _used(document: Document) -> Iterator[str]:
    for _, text, _ in _texts(document):
        yield from PLACEHOLDER.findall(text)
    for step in document.steps:
        yield from PLACEHOLDER.findall(step.conclusion)
        texts = [link.predicate for link in step.links if link.predicate]
        texts += [step.policy["for each"][0].strip("` ")] if "for each" in step.policy else []
        for text in texts:
            yield from re.findall(r"[A-Za-z_]\w*", text)
        for use in step.uses:
            yield from (value.strip("\"'{}") for value in use.arguments.values())
            query = (document.queries or {}).get(use.query)
            if query is None:
                # What an unknown query takes is unknown, too.
                yield from document.parameters if document.queries is None else ()
                continue
            inner = placeholders(query.text) if query.kind == "sql" else names_in(query.text)
            yield from (*inner, *names_in(query.text), *names_in(query.extra), *query.parameters)
