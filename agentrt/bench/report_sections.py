"""The parts of a report's body as HTML: key numbers and tables."""

from __future__ import annotations

import json
from collections.abc import Callable

from agentrt.bench.metrics import ENDED
from agentrt.bench.records import RunRecord
from agentrt.bench.report_figures import figure_value, figures_table
from agentrt.bench.report_html import element, escape, percent, ratio, seconds, tokens
from agentrt.bench.report_page import VERDICT, Page

__all__ = [
    "figures_section",
    "section",
    "settings_section",
    "stat_cards",
]


def section(name: str, heading: str, lead: str, body: str) -> str:
    """Return one titled section; ``name`` is its anchor."""
    head = element("h2", escape(heading)) + (
        element("p", escape(lead), class_="lead") if lead else ""
    )
    return element("section", head + body, id=name)


# --- key numbers ----------------------------------------------------------------------------------


def stat_cards(page: Page) -> str:
    """Return the row of key numbers: best against baseline, or what the run did."""
    cards = _comparison_cards(page) if page.is_comparison else _run_cards(page)
    return element("div", "".join(cards), class_="cards") if cards else ""


def _card(name: str, big: str, sub: str) -> str:
    body = (
        element("div", escape(name), class_="name")
        + element("div", escape(big), class_="big")
        + element("div", escape(sub), class_="sub")
    )
    return element("div", body, class_="card stat")


def _comparison_cards(page: Page) -> list[str]:
    if page.best is None:
        return []
    others = [name for name in page.policies if name != page.best]
    baseline = "fcfs" if "fcfs" in others else others[0]
    mine, theirs = page.metrics[page.best], page.metrics.get(baseline, {})
    wanted: list[tuple[str, str, Callable[[float], str]]] = [
        ("jct_mean", "Mean completion time", seconds),
        ("jct_p99", "P99 completion time", seconds),
        ("ttft_return_p99", "P99 time to first token, return turns", seconds),
        ("prefill_ratio", "Prefilled / ideal tokens", ratio),
    ]
    cards = []
    for key, name, show in wanted:
        value, other = figure_value(mine, (key,)), figure_value(theirs, (key,))
        if value is not None and other is not None:
            cards.append(_card(name, show(value), f"{page.best}; {baseline} {show(other)}"))
    return cards


def _run_cards(page: Page) -> list[str]:
    if not page.runs:
        return []
    run = page.runs[0]
    metrics = page.metrics[run.policy]
    cards = _resolved_card(run)
    prompts = figure_value(metrics, ("prompt_tokens",)) or 0
    cached = figure_value(metrics, ("prefix_hit_tokens",)) or 0
    calls = [tool for tool in run.tools if tool.name != VERDICT]
    commands = sum(bool(tool.command) for tool in calls)
    cards.append(_card("Turns", f"{len(run.turns):,}", f"{tokens(prompts)} prompt tokens"))
    sub = f"{commands:,} commands run" if commands else "replayed as time"
    cards.append(_card("Tool calls", f"{len(calls):,}", sub))
    if prompts:
        share = f"{percent(cached / prompts)} of all prompt tokens"
        cards.append(_card("Prompt tokens from cache", tokens(cached), share))
    mean, span = figure_value(metrics, ("jct_mean",)), figure_value(metrics, ("makespan",))
    if mean is not None and span is not None:
        cards.append(_card("Mean completion time", seconds(mean), f"makespan {seconds(span)}"))
    return cards


def _resolved_card(run: RunRecord) -> list[str]:
    judged = [row for row in run.programs if row.outcome in ("resolved", "unresolved")]
    if not judged:
        ended = sum(row.outcome in ENDED for row in run.programs)
        return [_card("Programs", f"{ended:,}/{len(run.programs):,}", "played to their end")]
    resolved = sum(row.outcome == "resolved" for row in judged)
    return [_card("Resolved", f"{resolved}/{len(run.programs)}", "repositories whose tests pass")]


# --- tables ---------------------------------------------------------------------------------------


def figures_section(page: Page) -> str:
    """Return the table of all figures."""
    seeds = {run.seed for run in page.runs}
    lead = f"Means over {len(seeds)} seeds; ± is the 95 % interval." if len(seeds) > 1 else ""
    table = figures_table(page.policies, page.metrics, page.intervals)
    return section("figures", "All figures", lead, table)


def settings_section(page: Page) -> str:
    """Return what the figures depend on, folded."""
    rows = [*page.settings.items(), *(("machine", page.machine),) * bool(page.machine)]
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="mono">{escape(_plain(value))}</td></tr>'
        for name, value in rows
    )
    table = f'<div class="scroll"><table class="figures"><tbody>{body}</tbody></table></div>'
    fold = f'<details class="more"><summary>Show all settings</summary>{table}</details>'
    return section("settings", "Settings", "", fold)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
