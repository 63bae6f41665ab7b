"""Memory over time as SVG: one band a replay, the limit as a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agentrt.bench.report_html import element, escape, number
from agentrt.bench.report_plots import nice_ticks

__all__ = ["COLOURS", "memory_plot"]

COLOURS = ("p3", "p1", "p2", "p4")
"""CSS classes of the bands, in the order of the roles."""

WIDTH, HEIGHT = 560, 236
LEFT, RIGHT, TOP, BOTTOM = 52.0, WIDTH - 14.0, 12.0, 196.0
MIB = 1 << 20

Scale: TypeAlias = Callable[[float], float]


def memory_plot(
    rows: Sequence[Sequence[float]], roles: Sequence[str], limit: int, longest: float, title: str
) -> str:
    """Return stacked bands of ``rows`` (seconds, bytes of each role), on ``longest`` seconds."""
    if not rows:
        return ""
    top = 1.06 * max(limit, *(sum(row[1:]) for row in rows)) / MIB

    def x(at: float) -> float:
        return LEFT + (RIGHT - LEFT) * at / longest

    def y(mib: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * mib / top

    parts = [_axes(x, y, longest, top)]
    below = [0.0] * len(rows)
    for place, name in enumerate(roles):
        above = [base + row[1 + place] / MIB for base, row in zip(below, rows, strict=True)]
        parts.append(_band(rows, below, above, x, y, COLOURS[place % len(COLOURS)], name))
        below = above
    line = y(limit / MIB)
    parts.append(
        f'<line class="ideal-line" x1="{LEFT}" x2="{RIGHT}" y1="{line:.1f}" y2="{line:.1f}">'
        f"<title>limit {number(limit / MIB)} MiB</title></line>"
    )
    return (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    )


def _band(
    rows: Sequence[Sequence[float]],
    below: Sequence[float],
    above: Sequence[float],
    x: Scale,
    y: Scale,
    css: str,
    name: str,
) -> str:
    there = [f"{x(row[0]):.1f} {y(high):.1f}" for row, high in zip(rows, above, strict=True)]
    back = [f"{x(row[0]):.1f} {y(low):.1f}" for row, low in zip(rows, below, strict=True)]
    outline = "M" + "L".join([*there, *reversed(back)]) + "Z"
    return f'<path class="{css}" d="{outline}"><title>{escape(name)}</title></path>'


def _axes(x: Scale, y: Scale, longest: float, top: float) -> str:
    parts = []
    for mib in nice_ticks(0, top):
        at = y(mib)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            + _text(LEFT - 8, at + 4, number(mib), "tick end")
        )
    for second in nice_ticks(0, longest):
        parts.append(_text(x(second), BOTTOM + 17, number(second), "tick middle"))
    parts.append(_text(RIGHT, BOTTOM + 34, "seconds; MiB", "tick end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, css: str) -> str:
    return element("text", escape(text), class_=css, x=f"{x:.1f}", y=f"{y:.1f}")
