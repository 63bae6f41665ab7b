"""The report as Markdown, for tickets and pull requests. Text of a run never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from agentrt.workflows.render import to_mermaid
from agentrt.workflows.report_markup import anchor
from agentrt.workflows.report_model import DecisionNote, QueryNote, Report, StepNote
from agentrt.workflows.report_words import (
    STATUS,
    brief,
    cell,
    clock,
    gate_outcome,
    handle_line,
    is_assembled,
    plural,
    preview_note,
    span,
    step_timing,
)

__all__ = ["to_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~!&])")


def to_markdown(report: Report) -> str:
    """Return the whole report as one Markdown document."""
    lines: list[str] = []
    for part in (_head, _found, _path, _steps, _rest, _settings):
        lines += [*part(report), ""]
    return "\n".join(lines).rstrip() + "\n"


def _head(report: Report) -> Iterator[str]:
    yield f"# {_text(report.title)}"
    yield ""
    yield f"**{STATUS.get(report.status, report.status)}**: {_text(report.headline())}"
    yield ""
    if _reason(report):
        yield f"Reason: {_text(_reason(report))}"
        yield ""
    facts = [
        f"Run {_code(report.run_id)}" if report.run_id else "",
        clock(report.started),
        span(report.seconds),
        plural(len(report.ran), "step"),
        plural(len(report.queries), "query", "queries"),
        f"{report.tokens:,} tokens" if report.tokens else "",
    ]
    yield " · ".join(filter(None, facts))
    if report.summary:
        yield from ("", "## Summary (written by a model)", "", _text(report.summary))


def _reason(report: Report) -> str:
    return report.reason if report.status != "succeeded" else ""


def _found(report: Report) -> Iterator[str]:
    yield "## Findings"
    yield ""
    found = [step for step in report.steps if step.findings or step.conclusion]
    if not found:
        yield "No step came to a finding."
    for step in found:
        yield f"- [{_text(step.id)}](#{anchor(step.id)}) {_text(step.title)}: {_text(brief(step))}"


def _path(report: Report) -> Iterator[str]:
    yield "## Path"
    yield ""
    yield " → ".join(_text(step) for step in report.path) or "No step succeeded."
    yield ""
    yield from _fenced(to_mermaid(report.plan, report.states).rstrip(), "mermaid")
    yield ""
    rows = [
        [step.id, step.title, STATUS.get(step.status, step.status), _start(step), step_timing(step)]
        for step in report.steps
    ]
    yield from _table(["Step", "Title", "Outcome", "Started after", "Took"], rows)


def _start(step: StepNote) -> str:
    return span(step.attempts[0].start) if step.attempts else ""


def _steps(report: Report) -> Iterator[str]:
    yield "## Steps and their evidence"
    for step in report.ran:
        yield ""
        yield from _step(step)


def _step(step: StepNote) -> Iterator[str]:
    yield f'### <a id="{anchor(step.id)}"></a>{_text(step.id)}: {_text(step.title)}'
    yield ""
    reason = f": {_text(step.reason)}" if step.reason else ""
    yield f"**{STATUS.get(step.status, step.status)}**{reason} · {step_timing(step)}"
    if step.findings and not is_assembled(step):
        who = "written by a model" if step.by_model else "from the data"
        yield from ("", f"Findings ({who}):", "", *_quoted(step.findings))
    if step.conclusion:
        yield from ("", f"Conclusion: {_text(step.conclusion)}")
    for query in step.queries:
        yield from ("", *_query(query))
    for command in step.commands:
        ended = command.failure or f"exit code {command.exit_code}"
        yield from ("", f"Command ({_text(ended)}):", "", *_fenced(command.command, "sh"))
        if command.output:
            yield from ("", "Its output:", "", *_fenced(command.output[-2000:], "text"))
    for nested in step.nested:
        came = nested.failure or nested.conclusion or nested.status
        yield from ("", f"Guide {_code(nested.guide)}, run {_code(nested.run_id)}: {_text(came)}")
    if step.decisions:
        yield from ("", *_decisions(step.decisions))
    yield from _events(step)


def _query(query: QueryNote) -> Iterator[str]:
    came = handle_line(query.handle) if query.handle else query.failure
    source = f"on {_text(query.source)}"
    yield f'<a id="{query.anchor}"></a>Query {_code(query.name)} {source}: {_text(came)}'
    yield ""
    yield from _fenced(query.statement, "sql" if query.kind == "sql" else "text")
    given = [f"{_code(name)} = {_code(str(value))}" for name, value in query.parameters.items()]
    if query.window:
        given.append(f"from {_text(query.window)}")
    if given:
        yield from ("", f"With {', '.join(given)}.")
    if query.handle and query.rows:
        names = [column.name for column in query.handle.columns]
        yield from ("", *_table(names, [[cell(each) for each in row] for row in query.rows]))
        if preview_note(query):
            yield from ("", f"({_text(preview_note(query))})")


def _decisions(decisions: Sequence[DecisionNote]) -> Iterator[str]:
    rows = [
        [note.edge.target, note.words, _taken(note), note.by, note.evidence] for note in decisions
    ]
    yield from _table(["Leads to", "Condition", "Taken", "Decided by", "Evidence"], rows)


def _taken(note: DecisionNote) -> str:
    return {"enabled": "yes", "disabled": "no"}.get(note.state, note.state)


def _events(step: StepNote) -> Iterator[str]:
    lines = []
    for gate in step.gates:
        lines.append(f"- Asked: {_text(gate.question)} Answer: {_text(gate_outcome(gate))}")
    for attempt in step.attempts if len(step.attempts) > 1 else ():
        wait = f"; tried again after {span(attempt.wait)}" if attempt.wait is not None else ""
        error = f": {_text(attempt.error)}" if attempt.error else ""
        took = span(attempt.end - attempt.start)
        lines.append(f"- Attempt {attempt.number} {attempt.status}, {took}{error}{wait}")
    lines += [f"- Warning: {_text(warning)}" for warning in step.warnings]
    if lines:
        yield from ("", *lines)


def _rest(report: Report) -> Iterator[str]:
    if not report.not_run:
        return
    yield "## Steps that did not run"
    yield ""
    for step in report.not_run:
        status = STATUS.get(step.status, step.status)
        why = f", {_text(step.reason)}" if step.reason else ""
        yield f"- {_text(step.id)} {_text(step.title)}: {status}{why}"
        for gate in step.gates:
            yield f"  - asked: {_text(gate.question)} Answer: {_text(gate_outcome(gate))}"
        for note in step.incoming:
            state = {"disabled": "not taken", "enabled": "taken"}.get(note.state, note.state)
            evidence = f" ({_text(note.evidence)})" if note.evidence else ""
            yield f"  - from {_text(note.edge.source)}, {_text(note.words)}: {state}{evidence}"


def _settings(report: Report) -> Iterator[str]:
    yield "## How it was run"
    yield ""
    rows = [[name, value] for name, value in {**report.parameters, **report.settings}.items()]
    rows.append(["events in the log", f"{report.events:,}"])
    if report.resumed:
        rows.append(["resumed", plural(report.resumed, "time")])
    if report.forked_from:
        rows.append(["forked from", report.forked_from])
    yield from _table(["What", "Value"], rows)


def _text(text: str) -> str:
    """Return foreign text on one line, with every mark of Markdown and HTML taken from it."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return _SPECIAL.sub(r"\\\1", " ".join(plain.split()))


def _code(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def _fenced(text: str, language: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.splitlines(), fence]


def _quoted(text: str) -> list[str]:
    return [f"> {_text(line)}" for line in text.splitlines()]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, names))} |"
    yield f"|{' --- |' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(map(_text, row))} |"
