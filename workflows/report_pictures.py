"""The two pictures of the report: the plan coloured by outcome, and when which step ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from agentrt.workflows.guide import END, START
from agentrt.workflows.render import to_svg
from agentrt.workflows.report_markup import anchor, element, escape, tone
from agentrt.workflows.report_model import AttemptNote, GateNote, Report, StepNote
from agentrt.workflows.report_words import STATUS, cell, span

__all__ = ["dag", "dag_styles", "sparkline", "timeline"]

_DARK = {
    "#ffffff": "#161920",
    "#98a2b3": "#6d7685",
    "#475467": "#aab3c2",
    "#d1fadf": "#14301f",
    "#12823b": "#4cc489",
    "#05603a": "#a5e8c6",
    "#fee4e2": "#3a1820",
    "#d92d20": "#ff7384",
    "#912018": "#ffc2c9",
    "#ffe6d5": "#3a2413",
    "#e04f16": "#ee9a57",
    "#932f19": "#ffd2ae",
    "#f2f4f7": "#1d212a",
    "#c3c9d3": "#454d5b",
    "#d0d5dd": "#3a414d",
    "#667085": "#8b94a3",
    "#ebe9fe": "#251f45",
    "#7a5af8": "#a892ff",
    "#4a1fb8": "#d3c8ff",
    "#fef7c3": "#35280f",
    "#ca8504": "#e3bb4d",
    "#854a0e": "#f5dc9b",
    "#d1e9ff": "#14253f",
    "#1570ef": "#78a0ff",
    "#1849a9": "#c2d5ff",
}
"""What the picture's colours become on a dark page."""


def dag(report: Report) -> str:
    """Return the plan as an SVG element in which every step links to its part of the page."""
    root = ElementTree.fromstring(to_svg(report.plan, report.states))
    for part in root.iter():
        # In HTML the elements of an SVG have no prefix and need no namespace.
        part.tag = str(part.tag).rpartition("}")[2]
    titles = {_plain(f"{node.id}: {node.title}"): node.id for node in report.plan.nodes.values()}
    for place, group in enumerate(list(root)):
        title = group.find("title")
        step = titles.get(_plain(title.text or "")) if title is not None else None
        if group.tag != "g" or step is None or step in (START, END):
            continue
        link = ElementTree.Element("a", href=f"#{anchor(step)}")
        link.append(group)
        root[place] = link
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _plain(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def dag_styles() -> str:
    """Return the style rules that give the picture its dark colours on screen."""
    rules = "".join(
        f'.dag svg [{name}="{light}"]{{{name}:{dark}}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme: dark){{{rules}}}"


def timeline(report: Report) -> str:
    """Return one line for each step that ran, with a bar for every attempt, in order of start."""
    ran = sorted(report.ran, key=lambda step: step.attempts[0].start)
    if not ran:
        return ""
    whole = max(report.seconds, 1e-9)
    lines = [_axis(whole), *(_line(step, whole) for step in ran)]
    return element("div", "".join(lines), class_="card gantt")


def _axis(whole: float) -> str:
    ticks = "".join(
        element("span", escape(span(whole * part / 4)), style=f"left:{25 * part}%")
        for part in range(5)
    )
    inner = element("span") + element("div", ticks, class_="track") + element("span")
    return element("div", inner, class_="line axis")


def _line(step: StepNote, whole: float) -> str:
    words = element("b", escape(step.id)) + escape(step.title)
    name = element("a", words, class_="name", href=f"#{anchor(step.id)}", title=step.title)
    track = element("div", "".join(_bars(step, whole)), class_="track")
    took = element("span", escape(span(step.seconds)), class_="took")
    return element("div", name + track + took, class_="line")


def _bars(step: StepNote, whole: float) -> Iterator[str]:
    for gate in step.gates:
        yield _gate_bar(gate, whole)
    for attempt in step.attempts:
        yield _attempt_bar(attempt, whole)


def _gate_bar(gate: GateNote, whole: float) -> str:
    end = whole if gate.answered is None else gate.answered
    title = f"waits for an answer: {gate.question}"
    return element("i", class_="gate", style=_place(gate.opened, end, whole), title=title)


def _attempt_bar(attempt: AttemptNote, whole: float) -> str:
    title = (
        f"attempt {attempt.number}, {STATUS.get(attempt.status, attempt.status)}: "
        f"{span(attempt.start)} to {span(attempt.end)}"
    )
    style = f"{_place(attempt.start, attempt.end, whole)};{tone(attempt.status)}"
    return element("i", class_="bar-part", style=style, title=title)


def _place(start: float, end: float, whole: float) -> str:
    left = min(100.0, 100 * start / whole)
    return f"left:{left:.3f}%;width:{min(100 - left, 100 * (end - start) / whole):.3f}%"


def sparkline(values: Sequence[float]) -> str:
    """Return a small line of a measurement over time with its lowest and highest value."""
    low, high = min(values), max(values)
    reach = (high - low) or 1.0
    step = 480 / max(1, len(values) - 1)
    points = " ".join(
        f"{step * place:.1f},{58 - 52 * (value - low) / reach:.1f}"
        for place, value in enumerate(values)
    )
    said = f"from {cell(values[0])} to {cell(values[-1])}, between {cell(low)} and {cell(high)}"
    line = element("title", escape(said)) + element("polyline", points=points)
    drawn = element("svg", line, viewBox="-4 0 488 64", preserveAspectRatio="none", role="img")
    ends = element("span", escape(cell(high))) + element("span", escape(cell(low)))
    return element("div", drawn + element("div", ends, class_="ends"), class_="spark")
