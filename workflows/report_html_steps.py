"""One step of the HTML report with all of its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentrt.workflows.report_markup import (
    anchor,
    details,
    element,
    escape,
    facts,
    inline,
    pill,
    table,
    tag,
    tone,
)
from agentrt.workflows.report_model import (
    AttemptNote,
    CommandNote,
    DecisionNote,
    ModelNote,
    NestedNote,
    QueryNote,
    StepNote,
)
from agentrt.workflows.report_pictures import sparkline
from agentrt.workflows.report_words import (
    STATUS,
    cell,
    gate_outcome,
    is_assembled,
    plural,
    preview_note,
    size,
    span,
    step_timing,
)

__all__ = ["step_card"]

_OPEN_QUERIES = 3
_NUMERIC = ("integer", "number")


def step_card(step: StepNote) -> str:
    """Return the part of a step that ran."""
    name = element("span", escape(step.id)) + escape(step.title)
    took = element("span", escape(step_timing(step)), class_="took")
    head = element("header", element("h3", name) + took + pill(step.status))
    body = element("div", "".join(_parts(step)), class_="body")
    return element(
        "article",
        head + body,
        class_="card step",
        id=anchor(step.id),
        style=tone(step.status),
    )


def _parts(step: StepNote) -> Iterator[str]:
    if step.reason:
        calm = "why calm" if step.status in ("cancelled", "waiting") else "why"
        yield element("p", escape(step.reason), class_=calm)
    if step.conclusion:
        yield element("p", escape(step.conclusion), class_="conclusion")
    if step.findings and not is_assembled(step):
        yield _findings(step)
    yield from _evidence(step)
    if step.decisions:
        yield _titled("Where it led", _decisions(step.decisions))
    yield from _course(step)


def _findings(step: StepNote) -> str:
    who = tag("written by a model", "model") if step.by_model else tag("put together from data")
    style = "prose model" if step.by_model else "prose"
    head = element("h4", "Findings " + who)
    return head + element("div", escape(step.findings), class_=style)


def _evidence(step: StepNote) -> Iterator[str]:
    parts = [
        _query(query, opened=len(step.queries) <= _OPEN_QUERIES, attempts=len(step.attempts))
        for query in step.queries
    ]
    parts += [_command(command) for command in step.commands]
    parts += [_nested(nested) for nested in step.nested]
    if parts:
        yield _titled("Evidence", "".join(parts))


def _titled(title: str, body: str) -> str:
    return element("h4", escape(title)) + body


def _query(query: QueryNote, *, opened: bool, attempts: int) -> str:
    rows = plural(query.handle.rows, "row") if query.handle else "no answer"
    more = ", more at the source" if query.handle and query.handle.truncated else ""
    tried = f" · attempt {query.attempt}" if attempts > 1 else ""
    summary = (
        element("b", escape(query.name))
        + element("span", escape(f"{rows}{more}"))
        + element("span", escape(f"{query.source}{tried}"), class_="hint")
    )
    inside = element("div", "".join(_query_parts(query)), class_="inside")
    return details(summary, inside, name="query", opened=opened, id_=query.anchor)


def _query_parts(query: QueryNote) -> Iterator[str]:
    if query.failure:
        yield element("p", escape(query.failure), class_="why")
    yield element("pre", element("code", escape(query.statement)))
    given = [(name, str(value)) for name, value in query.parameters.items() if value is not None]
    yield facts([*given, ("window", query.window)], "given")
    if query.handle is None:
        return
    if len(query.series) >= 5:
        yield sparkline(query.series)
    if query.rows:
        yield _rows(query)
    note = preview_note(query)
    told = (
        f"{note[0].upper() + note[1:]} · " if note else ""
    ) + f"data {query.handle.id} · sha256 {query.handle.digest}"
    yield element("p", escape(told), class_="digest")


def _rows(query: QueryNote) -> str:
    columns = query.handle.columns if query.handle else ()
    numeric = [place for place, column in enumerate(columns) if column.type in _NUMERIC]
    rows = [
        element(
            "tr",
            "".join(
                element("td", escape(cell(value)), class_="num" if place in numeric else None)
                for place, value in enumerate(row)
            ),
        )
        for row in query.rows
    ]
    return table([column.name for column in columns], rows, "cells", numeric)


def _command(command: CommandNote) -> str:
    ended = "failed" if command.failure else f"exit code {command.exit_code}"
    used = [
        span(command.duration) if command.duration is not None else "",
        f"peak {size(command.peak_memory)}" if command.peak_memory else "",
    ]
    hint = " · ".join(filter(None, ["command", *used]))
    summary = element("b", escape(ended)) + element("span", escape(hint), class_="hint")
    inside = element("p", escape(command.failure), class_="why") if command.failure else ""
    inside += element("pre", element("code", escape(command.command)))
    if command.output:
        inside += element("pre", escape(command.output))
    return details(summary, element("div", inside, class_="inside"), name="query", opened=True)


def _nested(nested: NestedNote) -> str:
    status = pill(nested.status) if nested.status in STATUS else ""
    summary = element("b", escape(f"Guide {nested.guide}")) + status
    inside = element("p", escape(nested.failure), class_="why") if nested.failure else ""
    inside += facts([("run", nested.run_id), ("conclusion", nested.conclusion)], "given")
    inside += "".join(
        element("p", element("b", escape(step)) + " " + escape(text))
        for step, text in nested.findings.items()
    )
    return details(summary, element("div", inside, class_="inside"), name="query", opened=False)


def _decisions(decisions: Sequence[DecisionNote]) -> str:
    names = ["Leads to", "Condition", "Taken", "Decided by", "Evidence"]
    return table(names, _decision_rows(decisions), "edges")


def _decision_rows(decisions: Sequence[DecisionNote]) -> Iterator[str]:
    for note in decisions:
        other = note.edge.target
        words = escape(note.words)
        code = note.edge.predicate == note.words
        cells = [
            element("a", escape(other), href=f"#{anchor(other)}") if other != "end" else "end",
            element("code", words) if code else words,
            {"enabled": "yes", "disabled": "no"}.get(note.state, escape(note.state)),
            tag(note.by, note.by),
            inline(note.evidence),
        ]
        taken = "taken" if note.state == "enabled" else None
        yield element("tr", "".join(element("td", each) for each in cells), class_=taken)


def _course(step: StepNote) -> Iterator[str]:
    lines = [f"Asked: {gate.question} Answer: {gate_outcome(gate)}." for gate in step.gates]
    lines += [_attempt(attempt) for attempt in step.attempts if len(step.attempts) > 1]
    lines += [f"Warning: {warning}" for warning in step.warnings]
    lines += [_model(model) for model in step.models]
    if lines:
        items = "".join(element("li", escape(line)) for line in lines)
        yield _titled("How it went", element("ul", items, class_="plain"))


def _attempt(attempt: AttemptNote) -> str:
    error = f": {attempt.error}" if attempt.error else ""
    wait = f"; the next came {span(attempt.wait)} later" if attempt.wait is not None else ""
    status = STATUS.get(attempt.status, attempt.status)
    took = span(attempt.end - attempt.start)
    return f"Attempt {attempt.number} {status} after {took}{error}{wait}"


def _model(model: ModelNote) -> str:
    asked = "a choice" if model.asks == "choice" else "a text"
    if model.failure:
        return f"Asked the model {model.model} for {asked}: {model.failure}"
    answer = f", which was {model.answer!r}" if model.asks == "choice" else ""
    cached = f", {model.cached_tokens:,} of them reused" if model.cached_tokens else ""
    return f"Asked the model {model.model} for {asked}{answer}: {model.tokens:,} tokens{cached}"
