"""A plan as one SVG picture that needs nothing else; all text in it is escaped."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from agentrt.workflows.guide import END, START, Edge
from agentrt.workflows.plan import Plan, PlanNode
from agentrt.workflows.render_layout import BOX, lay_out

__all__ = ["COLOURS", "to_svg"]

COLOURS: dict[str, tuple[str, str, str]] = {
    "pending": ("#ffffff", "#98a2b3", "#475467"),
    "waiting": ("#fef7c3", "#ca8504", "#854a0e"),
    "running": ("#d1e9ff", "#1570ef", "#1849a9"),
    "succeeded": ("#d1fadf", "#12823b", "#05603a"),
    "failed": ("#fee4e2", "#d92d20", "#912018"),
    "timed_out": ("#ffe6d5", "#e04f16", "#932f19"),
    "skipped": ("#f2f4f7", "#c3c9d3", "#667085"),
    "cancelled": ("#ebe9fe", "#7a5af8", "#4a1fb8"),
    "inconclusive": ("#fef7c3", "#ca8504", "#854a0e"),
}
"""Fill, border and text colour of each status; border and text are told apart without colour,
too: the status is written in the node."""

_MARGIN = 20.0
_LINE = {"enabled": "#12823b", "disabled": "#d0d5dd", "pending": "#98a2b3"}
_LABEL = 30
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def to_svg(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """Return an SVG document: steps as boxes coloured by status, edges with their conditions."""
    known = states or {}
    layout = lay_out(plan)
    labels = _Labels()
    lines, texts = [], []
    # Ways that were taken lie on top of those that were not.
    for edge in sorted(plan.edges, key=lambda edge: known.get(edge.name) == "enabled"):
        path = layout.paths[edge.name]
        lines.append(_edge(edge, path, known))
        texts.append(labels.place(edge, path))
    boxes = [_node(node, layout.centres[name], known) for name, node in plan.nodes.items()]
    legend, more = _legend(plan, known, layout.height + 24)
    width = max(layout.width, 360.0) + 2 * _MARGIN
    height = layout.height + more + 2 * _MARGIN
    body = "\n".join(part for part in [*lines, *texts, *boxes, legend] if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{-_MARGIN:.0f} {-_MARGIN:.0f} {width:.0f} {height:.0f}" role="img" '
        f'font-family="{_FONT}" font-size="12">\n<title>{_text(plan.guide.title)}</title>\n'
        f"{_markers()}\n{body}\n</svg>\n"
    )


def _text(text: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in text)
    return escape(" ".join(printable.split()), {'"': "&quot;"})


def _short(text: str, most: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1].rstrip() + "…"


def _markers() -> str:
    marks = [
        f'<marker id="agentrt-arrow-{state}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0.5 L7.5 4 L0 7.5 z" '
        f'fill="{colour}"/></marker>'
        for state, colour in _LINE.items()
    ]
    return f"<defs>{''.join(marks)}</defs>"


def _edge(edge: Edge, path: Sequence[tuple[float, float]], known: Mapping[str, str]) -> str:
    state = known.get(edge.name, "pending")
    state = state if state in _LINE else "pending"
    dash = ' stroke-dasharray="5 4"' if state == "disabled" else ""
    width = "2" if state == "enabled" else "1.4"
    return (
        f'<path d="{_curve(path)}" fill="none" stroke="{_LINE[state]}" stroke-width="{width}"'
        f'{dash} marker-end="url(#agentrt-arrow-{state})">'
        f"<title>{_text(_tooltip(edge))}</title></path>"
    )


def _tooltip(edge: Edge) -> str:
    code = f" ({edge.predicate})" if edge.predicate and edge.condition else ""
    return f"{edge.source} to {edge.target}: {_words(edge) or 'always'}{code}"


def _words(edge: Edge) -> str:
    if edge.otherwise:
        return f"otherwise ({edge.condition})" if edge.condition else "otherwise"
    return edge.condition or edge.predicate or ""


def _label(edge: Edge) -> str:
    """The words, cut to length; of code the end is kept, where siblings differ the most."""
    words = " ".join(_words(edge).split())
    if edge.predicate and not edge.condition and len(words) > _LABEL:
        end = words[1 - _LABEL :]
        whole = end.partition(" ")[2]
        return f"…{whole if len(whole) > _LABEL // 2 else end}"
    return _short(words, _LABEL)


def _curve(path: Sequence[tuple[float, float]]) -> str:
    """From the bottom of the first box to the top of the last, straight down past the others."""
    half = BOX[1] / 2
    parts = [f"M{path[0][0]:.1f} {path[0][1] + half:.1f}"]
    for (x, y), (to_x, to_y) in itertools.pairwise(path):
        top, bottom = y + half, to_y - half
        bend = (bottom - top) / 2
        parts.append(
            f"C{x:.1f} {top + bend:.1f} {to_x:.1f} {bottom - bend:.1f} {to_x:.1f} {bottom:.1f}"
        )
        if (to_x, to_y) != path[-1]:
            parts.append(f"V{to_y + half:.1f}")
    return " ".join(parts)


class _Labels:
    """Places the edges' labels on their lines, where they cover none of the others."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def place(self, edge: Edge, path: Sequence[tuple[float, float]]) -> str:
        """Return the label's markup, empty for an edge that is always taken."""
        words = _label(edge)
        if not words:
            return ""
        half = 3.3 * len(words) + 5
        spots = [_along(path[0], path[1], share) for share in (0.5, 0.66, 0.34, 0.8, 0.2)]
        x, y = next((spot for spot in spots if self._free(*spot, half)), spots[0])
        self._taken.append((x, y, half))
        code = (
            ' font-family="ui-monospace, monospace"'
            if edge.predicate and not edge.condition
            else ""
        )
        return (
            f'<g font-size="10.5"><title>{_text(_tooltip(edge))}</title><rect x="{x - half:.1f}" '
            f'y="{y - 8:.1f}" width="{2 * half:.1f}" height="16" rx="4" fill="#ffffff" '
            f'fill-opacity="0.92"/><text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" '
            f'fill="#475467"{code}>{_text(words)}</text></g>'
        )

    def _free(self, x: float, y: float, half: float) -> bool:
        return all(abs(x - ox) > half + other or abs(y - oy) > 16 for ox, oy, other in self._taken)


def _along(
    start: tuple[float, float], end: tuple[float, float], share: float
) -> tuple[float, float]:
    """A point of the curve between two layers (its controls lie half-way down)."""
    eased = share * share * (3 - 2 * share)
    top = start[1] + BOX[1] / 2
    down = 1.5 * share * (1 - share) + share**3
    return start[0] + (end[0] - start[0]) * eased, top + down * (end[1] - start[1] - BOX[1])


def _node(node: PlanNode, centre: tuple[float, float], known: Mapping[str, str]) -> str:
    state = known.get(node.id, "pending")
    fill, stroke, ink = COLOURS.get(state, COLOURS["pending"])
    x, y = centre
    if node.id in (START, END):
        return (
            f'<g><title>{_text(node.title)}</title><rect x="{x - 46:.1f}" y="{y - 28:.1f}" '
            f'width="92" height="56" rx="28" fill="{fill}" stroke="{stroke}" stroke-width="1.6"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-weight="600" '
            f'fill="{ink}">{_text(_short(node.title, 12))}</text></g>'
        )
    dash = ' stroke-dasharray="5 4"' if state in ("skipped", "cancelled") else ""
    left, top = x - BOX[0] / 2, y - BOX[1] / 2
    return (
        f'<g><title>{_text(f"{node.id}: {node.title}")}</title><rect x="{left:.1f}" y="{top:.1f}" '
        f'width="{BOX[0]:.0f}" height="{BOX[1]:.0f}" rx="9" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1.6"{dash}/>{_head(node, known.get(node.id, ""), left, top, ink)}'
        f"{_lines(node.title, left + 12, top + 34, ink)}</g>"
    )


def _head(node: PlanNode, state: str, left: float, top: float, ink: str) -> str:
    notes = [state.replace("_", " ")] if state in COLOURS else _notes(node)
    right = (
        f'<text x="{left + BOX[0] - 10:.1f}" y="{top + 16:.1f}" text-anchor="end" font-size="10" '
        f'fill="{ink}">{_text(_short(", ".join(notes), 22))}</text>'
    )
    return (
        f'<text x="{left + 12:.1f}" y="{top + 16:.1f}" font-size="10.5" font-weight="700" '
        f'fill="{ink}">{_text(_short(node.id, 14))}</text>{right if notes else ""}'
    )


def _notes(node: PlanNode) -> list[str]:
    policy, step = node.policy, node.step
    notes = []
    if len(node.incoming) > 1 and policy.join != "any":
        quorum = f" {policy.quorum}" if policy.join == "quorum" else ""
        notes.append(f"join {policy.join}{quorum}")
    notes += ["approval"] if policy.gate == "approve" else []
    notes += ["for each"] if step and step.for_each else []
    notes += ["guide"] if step and step.guide else []
    notes += ["concludes"] if step and step.conclusion is not None else []
    return notes


def _lines(title: str, x: float, y: float, ink: str) -> str:
    wrapped = textwrap.wrap(" ".join(title.split()), 27) or [""]
    if len(wrapped) > 2:
        wrapped = [wrapped[0], _short(" ".join(wrapped[1:]), 27)]
    return "".join(
        f'<text x="{x:.1f}" y="{y + 15 * line:.1f}" fill="{ink}">{_text(words)}</text>'
        for line, words in enumerate(wrapped)
    )


def _legend(plan: Plan, known: Mapping[str, str], top: float) -> tuple[str, float]:
    """Say which colours stand for what, where any are used."""
    used = [state for state in COLOURS if state in {known.get(name) for name in plan.nodes}]
    if not used:
        return "", 0.0
    parts, x = [], 0.0
    for state in used:
        fill, stroke, ink = COLOURS[state]
        words = state.replace("_", " ")
        parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="12" height="12" rx="3" fill="{fill}" '
            f'stroke="{stroke}"/><text x="{x + 18:.1f}" y="{top + 10:.1f}" font-size="11" '
            f'fill="{ink}">{words}</text>'
        )
        x += 34 + 6.4 * len(words)
    return f"<g>{''.join(parts)}</g>", 40.0
