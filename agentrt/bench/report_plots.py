"""The comparison's plots, drawn as SVG when the report is written: they need no script.

Colours are CSS classes (``p0``, ``p1``, … for policies; ``queue``, ``prefill``, … for phases), so
the plots follow the page's light and dark mode. Every bar carries its figure as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentrt.bench.report_html import element, escape, number, shorten

__all__ = ["Bar", "BarGroup", "Curve", "Stack", "bars", "cdf", "nice_ticks", "stacks"]

WIDTH = 560
_LABEL = 124
_ROW = 21
_BAR = 13
_VALUE_ROOM = 104


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: whose it is, its length, the text at its end, and the CSS class that colours it."""

    label: str
    value: float
    text: str
    css: str


@dataclass(frozen=True, slots=True)
class BarGroup:
    """Bars under one heading."""

    heading: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Stack:
    """One stacked bar: ``parts`` are (CSS class, name, value, its text); ``text`` is the total."""

    label: str
    parts: Sequence[tuple[str, str, float, str]]
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a cumulative plot: the values whose distribution it shows."""

    label: str
    css: str
    values: Sequence[float]


def bars(groups: Sequence[BarGroup], *, shared_scale: bool, title: str) -> str:
    """Return horizontal bars; with ``shared_scale`` lengths compare across groups too."""
    top = max((bar.value for group in groups for bar in group.bars), default=0.0)
    parts: list[str] = []
    y = 0.0
    for group in groups:
        peak = top if shared_scale else max((bar.value for bar in group.bars), default=0.0)
        if group.heading:
            parts.append(_text(0, y + 13, group.heading, "heading"))
            y += 22
        for bar in group.bars:
            parts.append(_bar(bar, y, _length(bar.value, peak)))
            y += _ROW
        y += 9
    return _svg("".join(parts), y, title)


def stacks(rows: Sequence[Stack], *, title: str, normalise: bool = False) -> str:
    """Return stacked horizontal bars on one scale, or, with ``normalise``, as shares of each."""
    totals = [sum(value for _, _, value, _ in row.parts) for row in rows]
    top = max(totals, default=0.0)
    parts: list[str] = []
    y = 0.0
    for row, total in zip(rows, totals, strict=True):
        parts.append(_stack(row, y, total if normalise else top))
        y += _ROW + 7
    return _svg("".join(parts), y, title)


def cdf(curves: Sequence[Curve], *, title: str, unit: str) -> str:
    """Return the share of values at or below x, one line a curve; x is logarithmic if wide."""
    values = [value for curve in curves for value in curve.values]
    if not values:
        return ""
    scale, ticks = _scale(min(values), max(values))
    height, bottom = 292.0, 250.0
    parts = [_grid(ticks, scale, bottom, unit)]
    for curve in curves:
        path = _steps(sorted(curve.values), scale, bottom)
        parts.append(
            f'<path class="curve {escape(curve.css)}" d="{path}"><title>'
            f"{escape(curve.label)}</title></path>"
        )
    return _svg("".join(parts), height, title)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers in [low, high], about ``count`` of them, at steps of 1, 2 or 5."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low > 1e3
    factors = (1,) if wide else (1, 2, 5)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _scale(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """Return the x scale of a cumulative plot and its ticks."""
    left, right = 44.0, WIDTH - 14.0
    if low > 0 and high / low > 12:
        span = math.log(high / low)
        return lambda x: left + (right - left) * math.log(max(x, low) / low) / span, _log_ticks(
            low, high
        )
    top = high or 1.0
    return lambda x: left + (right - left) * x / top, nice_ticks(0, top)


def _grid(ticks: Sequence[float], scale: Callable[[float], float], bottom: float, unit: str) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * (bottom - 12)
        parts.append(f'<line class="grid" x1="44" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(36, y + 4, f"{share:.0%}", "tick end"))
    for tick in ticks:
        x = scale(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{bottom:.1f}"/>')
        parts.append(_text(x, bottom + 17, number(tick), "tick middle"))
    parts.append(_text(WIDTH - 14, bottom + 35, unit, "tick end"))
    return "".join(parts)


def _steps(values: Sequence[float], scale: Callable[[float], float], bottom: float) -> str:
    """Return a step line through the distribution; at most about 300 steps."""
    count = len(values)
    stride = max(1, count // 300)
    places = [*range(0, count, stride), count - 1]
    line = [f"M{scale(values[0]):.1f} {bottom:.1f}"]
    for place in places:
        y = bottom - (place + 1) / count * (bottom - 12)
        line.append(f"H{scale(values[place]):.1f}V{y:.1f}")
    return "".join(line)


def _length(value: float, peak: float) -> float:
    room = WIDTH - _LABEL - _VALUE_ROOM
    return room * value / peak if peak > 0 else 0.0


def _bar(bar: Bar, y: float, length: float) -> str:
    body = (
        f"<title>{escape(bar.label)}: {escape(bar.text)}</title>"
        + _label(bar.label, y)
        + f'<rect class="{escape(bar.css)}" x="{_LABEL}" y="{y:.1f}" width="{max(length, 1.5):.1f}"'
        f' height="{_BAR}" rx="2.5"/>'
        + _text(_LABEL + max(length, 1.5) + 7, y + 11, bar.text, "value")
    )
    return element("g", body)


def _stack(row: Stack, y: float, peak: float) -> str:
    parts = [_label(row.label, y + 2)]
    x = float(_LABEL)
    for css, name, value, text in row.parts:
        length = _length(value, peak)
        if length <= 0:
            continue
        parts.append(
            f'<rect class="{escape(css)}" x="{x:.1f}" y="{y:.1f}" width="{length:.2f}" '
            f'height="{_BAR + 4}"><title>{escape(row.label)}, {escape(name)}: {escape(text)}'
            "</title></rect>"
        )
        x += length
    parts.append(_text(x + 7, y + 13, row.text, "value"))
    return element("g", "".join(parts))


def _label(text: str, y: float) -> str:
    return _text(_LABEL - 9, y + 11, shorten(text, 18), "name end")


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(body: str, height: float, title: str) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {max(height, 1):.0f}">{body}</svg>'
    )
