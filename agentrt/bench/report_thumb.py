"""The time line without a script: one small SVG, for print and for readers without JavaScript.

Each program is a row of ``COLUMNS`` cells; a cell takes the colour of what filled most of it. The
KV occupancy below shares its time axis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

from agentrt.bench.records import KVSample, RunRecord, ToolRecord, TurnRecord
from agentrt.bench.report_data import all_programs, run_end, sample_kv
from agentrt.bench.report_html import escape, number, shorten
from agentrt.bench.report_plots import nice_ticks

__all__ = ["COLUMNS", "MAX_ROWS", "dominant_cells", "thumbnail"]

COLUMNS = 420
MAX_ROWS = 150
KINDS = ("queue", "prefill", "decode", "tool")
_LEFT, _WIDTH, _PLOT = 190, 1160, 960
_KV_HEIGHT = 90

Span = tuple[int, float, float]
"""Index into ``KINDS``, start and end in seconds."""


def thumbnail(run: RunRecord) -> str:
    """Return the time line of ``run`` as one static SVG (its first ``MAX_ROWS`` programs)."""
    programs = all_programs(run)[:MAX_ROWS]
    end = run_end(run)
    if not programs or end <= 0:
        return ""
    height = 14 if len(programs) <= 24 else 8
    spans = _spans(run)
    paths: dict[str, list[str]] = defaultdict(list)
    labels = []
    for place, row in enumerate(programs):
        y = 22 + place * height
        cells = dominant_cells(spans.get(row.program, ()), end)
        for kind, start, count in _runs(cells):
            paths[KINDS[kind]].append(f"M{start} {y}h{count}v{height - 2}h-{count}z")
        if place % (1 if height > 10 else 2) == 0:
            labels.append(_text(_LEFT - 8, y + height - 2, shorten(row.program, 30), "name end"))
    bottom = 22 + len(programs) * height
    body = [_axis(end, bottom + 12 + _KV_HEIGHT), *labels]
    shapes = "".join(
        f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in paths.items()
    )
    body.append(f'<g transform="translate({_LEFT} 0) scale({_PLOT / COLUMNS:.4f} 1)">{shapes}</g>')
    body.append(_occupancy(run.kv, end, bottom + 12))
    title = f"Time line of {len(programs)} programs under {run.policy}"
    return (
        f'<svg class="thumb" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {_WIDTH} {bottom + 12 + _KV_HEIGHT + 8}">{"".join(body)}</svg>'
    )


def dominant_cells(spans: Iterable[Span], end: float, columns: int = COLUMNS) -> list[int]:
    """Return for each of ``columns`` cells of [0, end) the kind that fills most of it, or -1."""
    fill = [[0.0] * len(KINDS) for _ in range(columns)]
    width = end / columns
    for kind, start, stop in spans:
        first = min(columns - 1, max(0, int(start / width)))
        last = min(columns - 1, max(first, int(stop / width)))
        for cell in range(first, last + 1):
            covered = min(stop, (cell + 1) * width) - max(start, cell * width)
            fill[cell][kind] += max(0.0, covered)
    return [max(range(len(KINDS)), key=cell.__getitem__) if any(cell) else -1 for cell in fill]


def _runs(cells: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """Yield (kind, first cell, count) of neighbouring equal cells, leaving the empty ones out."""
    start = 0
    for kind, group in groupby(cells):
        count = len(list(group))
        if kind >= 0:
            yield kind, start, count
        start += count


def _spans(run: RunRecord) -> dict[str, list[Span]]:
    spans: dict[str, list[Span]] = defaultdict(list)
    for turn in run.turns:
        spans[turn.program].extend(_turn_spans(turn))
    for tool in run.tools:
        spans[tool.program].append(_tool_span(tool))
    return spans


def _tool_span(tool: ToolRecord) -> Span:
    return KINDS.index("tool"), tool.start, tool.end


def _turn_spans(turn: TurnRecord) -> list[Span]:
    admitted = turn.finished if turn.admitted is None else turn.admitted
    token = turn.finished if turn.first_token is None else turn.first_token
    return [(0, turn.submitted, admitted), (1, admitted, token), (2, token, turn.finished)]


def _axis(end: float, bottom: float) -> str:
    parts = []
    for tick in nice_ticks(0, end, 8):
        x = _LEFT + tick / end * _PLOT
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{bottom}"/>')
        parts.append(_text(x, 11, f"{number(tick)} s", "tick middle"))
    return "".join(parts)


def _occupancy(samples: Sequence[KVSample], end: float, top: float) -> str:
    """Draw the page pool as stacked areas: pinned below, then leased, then cached."""
    rows = sample_kv(sorted(samples, key=lambda row: row.time), COLUMNS)
    peak = max((row.leased + row.cached + row.free for row in rows), default=0)
    if len(rows) < 2 or peak <= 0:
        return ""
    layers = (
        ("cached", [row.leased + row.cached for row in rows]),
        ("leased", [row.leased for row in rows]),
        ("pinned", [row.pinned for row in rows]),
    )
    xs = [_LEFT + row.time / end * _PLOT for row in rows]
    base = top + _KV_HEIGHT
    parts = [_text(_LEFT - 8, top + 12, "KV pool", "name end")]
    for css, values in layers:
        line = "".join(
            f"L{x:.0f} {base - value / peak * _KV_HEIGHT:.0f}"
            for x, value in zip(xs, values, strict=True)
        )
        parts.append(f'<path class="{css}" d="M{xs[0]:.0f} {base}{line}L{xs[-1]:.0f} {base}z"/>')
    return "".join(parts)


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
