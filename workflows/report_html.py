"""The report as one HTML file: no script, no request, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from agentrt.workflows.report_html_steps import step_card
from agentrt.workflows.report_markup import (
    anchor,
    element,
    escape,
    facts,
    inline,
    pill,
    section,
    table,
    tag,
)
from agentrt.workflows.report_model import Report, StepNote
from agentrt.workflows.report_pictures import dag, dag_styles, timeline
from agentrt.workflows.report_words import brief, clock, gate_outcome, plural, span

__all__ = ["to_html"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page's own promise to the browser: no request leaves it, and nothing in it runs."""

_BY = ("code", "model", "person", "rule")


def to_html(report: Report) -> str:
    """Return the whole page; the same report gives the same text."""
    sections = dict(_sections(report))
    main = element("main", _hero(report) + "".join(sections.values()), class_="wrap")
    body = _bar(sections) + main + _foot()
    return (
        f'<!doctype html>\n<html lang="en"><head>{_head(report)}</head>\n'
        f'<body id="top">{body}</body></html>\n'
    )


def _head(report: Report) -> str:
    # The benchmark's report has the same colours and type: one file holds them for both.
    shared = files("agentrt").joinpath("bench/assets/page.css").read_text(encoding="utf-8")
    own = files("agentrt").joinpath("workflows/assets/report.css").read_text(encoding="utf-8")
    title = f"{report.title}: {report.status}"
    return (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f"<title>{escape(title)}</title><style>{shared}\n{own}\n{dag_styles()}</style>"
    )


def _bar(sections: dict[str, str]) -> str:
    names = {
        "summary": "Summary",
        "findings": "Findings",
        "path": "Path",
        "timeline": "Timeline",
        "steps": "Steps",
        "rest": "Not run",
        "settings": "Run",
    }
    links = "".join(
        element("a", escape(name), href=f"#{key}") for key, name in names.items() if sections[key]
    )
    brand = element("a", "agentrt", class_="brand", href="#top")
    inner = brand + element("nav", links, aria_label="Sections")
    return element("div", element("div", inner, class_="wrap"), class_="bar")


def _hero(report: Report) -> str:
    outcome = pill(report.status) + element("p", escape(report.headline()), class_="headline")
    if report.status != "succeeded" and report.reason:
        outcome += element("p", escape(report.reason), class_="because")
    told = [
        ("Run", report.run_id),
        ("Started", clock(report.started)),
        *[(name, value) for name, value in report.parameters.items()],
        ("Forked from", report.forked_from),
        ("Resumed", plural(report.resumed, "time") if report.resumed else ""),
    ]
    return element(
        "header",
        element("p", "Troubleshooting guide run", class_="kicker")
        + element("h1", escape(report.title))
        + element("div", outcome, class_="outcome")
        + facts(told)
        + element("div", "".join(_cards(report)), class_="cards"),
        class_="hero",
    )


def _cards(report: Report) -> Iterator[str]:
    busy = sum(step.seconds for step in report.ran)
    yield _card("Took", span(report.seconds), f"{span(busy)} of steps, added up")
    failed = sum(step.status in ("failed", "timed_out") for step in report.steps)
    kinds = [f"{len(report.not_run)} not run", f"{failed} failed" if failed else ""]
    ran = f"{len(report.ran)} of {len(report.steps)}"
    yield _card("Steps run", ran, ", ".join(filter(None, kinds)))
    rows = sum(query.handle.rows for query in report.queries if query.handle)
    asked = plural(len(report.queries), "query", "queries")
    yield _card("Evidence", plural(rows, "row"), f"from {asked}")
    by = {who: report.decided_by.get(who, 0) for who in _BY}
    told = ", ".join(f"{count} by {who}" for who, count in by.items() if count)
    yield _card("Connections decided", str(sum(by.values())), told or "none")
    if report.tokens:
        share = f"{report.cached_tokens / report.tokens:.0%} reused from the cache"
        yield _card("Tokens", f"{report.tokens:,}", share)


def _card(name: str, big: str, sub: str) -> str:
    parts = zip(("name", "big", "sub"), (name, big, sub), strict=True)
    body = "".join(element("div", escape(text), class_=style) for style, text in parts)
    return element("div", body, class_="card stat")


def _sections(report: Report) -> Iterator[tuple[str, str]]:
    yield "summary", section("summary", "Summary", "", _summary(report))
    yield (
        "findings",
        section(
            "findings", "Findings", "What each step came to, with its evidence.", _found(report)
        ),
    )
    drawn = element("div", dag(report), class_="card dag")
    lead = "Every step by its outcome; green connections were taken. A step leads to its evidence."
    yield "path", section("path", "Path", lead, drawn)
    lead = "A bar for each attempt; hatched while a person was asked."
    yield "timeline", section("timeline", "Timeline", lead, timeline(report))
    cards = "".join(step_card(step) for step in report.ran)
    lead = "Queries as they were asked, what they returned, and who decided what followed."
    yield "steps", section("steps", "Steps and their evidence", lead, cards)
    lead = "Each with the connections into it, and why they were not taken."
    yield "rest", section("rest", "Steps that did not run", lead, _rest(report))
    yield "settings", section("settings", "How it was run", "", _settings(report))


def _summary(report: Report) -> str:
    if not report.summary:
        return ""
    by = element("p", tag("written by a model", "model"), class_="by")
    return by + element("div", escape(report.summary), class_="prose model")


def _found(report: Report) -> str:
    told = [step for step in report.steps if step.ran and (brief(step) or step.reason)]
    told += [step for step in report.not_run if step.gates]
    if not told:
        return element("p", "No step came to a finding.", class_="note")
    return element("ol", "".join(map(_finding, told)), class_="card findings")


def _finding(step: StepNote) -> str:
    link = element("a", escape(step.id), href=f"#{anchor(step.id)}", class_="id")
    text = brief(step) or step.reason
    if step.gates and not step.ran:
        text = f"{step.gates[-1].question} Answer: {gate_outcome(step.gates[-1])}."
    what = element("b", escape(step.title)) + element("span", escape(text))
    links = "".join(
        element(
            "a",
            escape(query.name + (" (failed)" if query.failure else "")),
            href=f"#{query.anchor}",
        )
        for query in step.queries[:6]
    )
    concluded = "concluded" if step.conclusion else None
    body = link + element("div", what, class_="what") + element("div", links, class_="links")
    return element("li", body, class_=concluded)


def _rest(report: Report) -> str:
    rows = [_rest_row(step) for step in report.not_run]
    names = ["Step", "", "Outcome", "Why"]
    return table(names, rows, "figures rest") if rows else ""


def _rest_row(step: StepNote) -> str:
    reasons = [
        element(
            "li",
            f"{escape(note.edge.source)}, {escape(note.words)}: "
            + escape({"disabled": "not taken", "enabled": "taken"}.get(note.state, note.state))
            + (f" {tag(note.by, note.by)} {inline(note.evidence)}" if note.evidence else ""),
        )
        for note in step.incoming
    ]
    told = [f"Asked: {gate.question} Answer: {gate_outcome(gate)}." for gate in step.gates]
    told += [step.reason] if step.reason else []
    reasons = [*(element("li", escape(text)) for text in told), *reasons]
    cells = [
        element("b", escape(step.id)),
        escape(step.title),
        pill(step.status),
        element("ul", "".join(reasons)) if reasons else "",
    ]
    row = "".join(element("td", each) for each in cells)
    return element("tr", row, id=anchor(step.id))


def _settings(report: Report) -> str:
    named = {"guide": "Guide", "fingerprint": "Fingerprint", "executor": "Executor"}
    rows = [
        (named.get(key, key.capitalize()), value)
        for key, value in [*report.settings.items(), ("Events in the log", f"{report.events:,}")]
    ]
    cells = [
        element("tr", element("th", escape(name), scope="row") + element("td", escape(value)))
        for name, value in rows
    ]
    return element("table", element("tbody", "".join(cells)), class_="figures")


def _foot() -> str:
    text = "Put together by agentrt from the log of the run. What a model wrote is marked as such."
    return element("footer", escape(text), class_="wrap")
