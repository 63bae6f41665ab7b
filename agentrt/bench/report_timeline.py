"""The time line's frame: controls, legend, canvases, its fallback, and the data that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrt.bench.records import RunRecord
from agentrt.bench.report_data import pack_run
from agentrt.bench.report_html import element, escape, script_json
from agentrt.bench.report_page import Page
from agentrt.bench.report_sections import section
from agentrt.bench.report_thumb import MAX_ROWS, thumbnail

__all__ = ["DATA_BUDGET", "timeline_data", "timeline_section"]

DATA_BUDGET = 3_000_000
"""Bytes of run data in a page; further runs keep their figures but lose their time line."""

_LEGEND = (
    ("queue", "queue"),
    ("prefill", "prefill"),
    ("decode", "decode"),
    ("tool", "tool call"),
    ("strip pin", "KV pin"),
    ("strip expired-pin", "pin that expired"),
    ("broken", "broken pin, failed tool, cancelled turn"),
)
_POOL = (("pinned", "pinned"), ("leased", "leased"), ("cached", "cached"), ("free", "free"))
_TURNS = (("line prefill", "running turns"), ("line queue", "waiting turns"))


def timeline_data(page: Page, budget: int = DATA_BUDGET) -> tuple[str, list[RunRecord]]:
    """Return the data scripts, and the runs embedded in them: one of each policy before more seeds.

    The first run is always embedded, whatever its size.
    """
    order = _by_seed_rank(page)
    scripts: list[str] = []
    kept: list[RunRecord] = []
    used = 0
    for run in order:
        text = script_json(pack_run(run))
        if kept and used + len(text) > budget:
            continue
        used += len(text)
        scripts.append(_script(f"run-{len(kept)}", text))
        kept.append(run)
    index = script_json({"runs": _entries(kept), "selected": _selected(page, kept)})
    return "".join(scripts) + _script("index", index), kept


def timeline_section(page: Page, kept: Sequence[RunRecord]) -> str:
    """Return the time line's markup for the runs that the page carries."""
    if not kept:
        return ""
    lead = "Every turn, tool call and KV pin, one row a program."
    how = (
        "Drag to pan. Ctrl and wheel, a pinch or the buttons zoom (plain wheel after a click). "
        "Hover for details. Where turns are too short to tell apart, a column shows their shares."
    )
    stage = (
        '<div class="stage" data-part="stage"><canvas data-part="axis" aria-hidden="true"></canvas>'
        '<div class="rows" data-part="rows" tabindex="0" role="application" aria-label="Time line '
        'of programs. Arrow keys pan, plus and minus zoom, 0 shows everything.">'
        '<canvas data-part="canvas"></canvas><div data-part="spacer"></div></div>'
        + _lane("pool", "KV pool in tokens over time: pinned, leased, cached and free", _POOL)
        + _lane("load", "Running and waiting turns over time", _TURNS)
        + _lane("memory", "Peak memory of each tool call", (("tool", "peak of one tool call"),))
        + '<div class="cursor" data-part="cursor" hidden></div></div>'
    )
    live = element("div", _controls(page, kept) + _legend(_LEGEND) + stage, class_="interactive")
    live += element("p", escape(how), class_="note interactive how")
    body = element("div", live + _fallback(page, kept), class_="card timeline")
    return section("timeline", "Time line", lead, body + _left_out(page, kept))


def _script(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>'


def _by_seed_rank(page: Page) -> list[RunRecord]:
    """Return the first run of each policy, the best policy's first, then the second of each, …"""
    names = sorted(page.policies, key=lambda name: name != page.best)
    ranked = [page.runs_of(name) for name in names]
    depth = max((len(runs) for runs in ranked), default=0)
    return [runs[rank] for rank in range(depth) for runs in ranked if rank < len(runs)]


def _entries(kept: Sequence[RunRecord]) -> list[dict[str, Any]]:
    return [
        {"policy": run.policy, "seed": run.seed, "id": f"run-{place}"}
        for place, run in enumerate(kept)
    ]


def _selected(page: Page, kept: Sequence[RunRecord]) -> int:
    policies = [run.policy for run in kept]
    return policies.index(page.best) if page.best in policies else 0


def _controls(page: Page, kept: Sequence[RunRecord]) -> str:
    shown = [name for name in page.policies if any(run.policy == name for run in kept)]
    policies = "".join(
        element("button", escape(name), type="button", data_policy=name, aria_pressed="false")
        for name in shown
    )
    seeds = sorted({run.seed for run in kept})
    options = "".join(element("option", str(seed), value=seed) for seed in seeds)
    seed = f'<label>Seed <select data-part="seed">{options}</select></label>'
    steps = (
        ("out", "−", "Zoom out"),
        ("in", "+", "Zoom in"),
        ("fit", "Fit", "Show everything"),
        ("left", "←", "Earlier"),
        ("right", "→", "Later"),
    )
    buttons = "".join(
        element("button", text, type="button", data_step=step, title=title, aria_label=title)
        for step, text, title in steps
    )
    rows = (
        '<label>Rows <select data-part="density"><option value="auto">automatic</option>'
        '<option value="fit">fit all</option><option value="normal">normal</option>'
        '<option value="tall">tall</option></select></label>'
        '<label><input type="checkbox" data-part="active"> only those in view</label>'
    )
    return element(
        "div",
        element("div", policies, class_="set", role="group", aria_label="Policy")
        + (element("div", seed, class_="set") if len(seeds) > 1 else "")
        + element("div", rows, class_="set push")
        + element("div", buttons, class_="set", role="group", aria_label="Zoom and pan"),
        class_="tools",
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        element("li", f'<i class="chip {css}"></i>{escape(name)}') for css, name in entries
    )
    return element("ul", items, class_="legend")


def _lane(part: str, label: str, entries: Sequence[tuple[str, str]]) -> str:
    canvas = element("canvas", data_part=part, role="img", aria_label=label)
    return element("div", canvas + _legend(entries), class_="lane")


def _fallback(page: Page, kept: Sequence[RunRecord]) -> str:
    """Return the static picture: shown in print, and where scripts do not run."""
    run = kept[_selected(page, kept)]
    count = len(run.programs)
    shown = f", its first {MAX_ROWS} programs" if count > MAX_ROWS else ""
    caption = f"{run.policy}, seed {run.seed}{shown}"
    legend = _legend((*_LEGEND[:4], *_POOL[:3]))
    note = "<noscript>Zoom, details and the other runs need JavaScript.</noscript>"
    body = f"{legend}{thumbnail(run)}<figcaption class='note'>{escape(caption)} {note}</figcaption>"
    return element("figure", body, class_="fallback")


def _left_out(page: Page, kept: Sequence[RunRecord]) -> str:
    missing = len(page.runs) - len(kept)
    if missing <= 0:
        return ""
    text = (
        f"To keep this page small, the time lines of {missing} more runs are left out; their "
        "figures are in the table."
    )
    return element("p", escape(text), class_="note")
