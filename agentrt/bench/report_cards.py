"""The plots of a report as cards: of a comparison a colour a policy, of a run a bar a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrt.bench.metrics import ENDED
from agentrt.bench.report_figures import PIN_OUTCOMES, figure_value
from agentrt.bench.report_html import element, escape, number, ratio, seconds, tokens
from agentrt.bench.report_page import Page
from agentrt.bench.report_plots import Bar, BarGroup, Curve, Stack, bars, cdf, stacks
from agentrt.bench.report_sections import section
from agentrt.bench.results import Metrics

__all__ = ["plot_card", "plots_section"]

_PHASES = (
    ("queue", "queue"),
    ("prefill", "prefill"),
    ("decode", "decode"),
    ("tool", "tool calls"),
    ("free", "other"),
)


def plots_section(page: Page) -> str:
    """Return the plots of the figures, one card each; nothing if no run has figures."""
    waits = plot_card(
        "Where the time goes", "Mean seconds a program spends in each state.", _waits(page)
    )
    left = [
        plot_card(
            "Job completion time", "Seconds from arrival to end; shorter is better.", _jct(page)
        ),
        plot_card(
            "Time to first token",
            "First and return turns; each group has its own scale."
            if page.is_comparison
            else "First turns of a context, and turns that return to one.",
            _first_tokens(page),
        ),
    ]
    right = [
        plot_card(
            "Distribution of completion times",
            "Share of programs done within x seconds.",
            _cdf(page),
        ),
        plot_card(
            "Prefilled tokens",
            "Computed, against what an infinite cache would need.",
            _prefill(page),
        ),
        plot_card("How pins ended", "Share of each policy's KV pins.", _pins(page)),
        plot_card(
            "Distance to the oracles",
            "Mean completion time and prefilled tokens over the oracle's; 1 is as good.",
            _oracles(page),
        ),
    ]
    # Short bars leave the room on the left that many policies take.
    (right if page.is_comparison else left).insert(1, waits)
    # Two columns of their own heights: cards of a common grid row would leave holes.
    columns = (element("div", "".join(cards), class_="column") for cards in (left, right))
    body = element("div", "".join(columns), class_="grid")
    lead = "Each policy on the same arrivals." if page.is_comparison else ""
    return section("plots", "Plots", lead, body) if any([*left, *right]) else ""


def plot_card(title: str, lead: str, body: str) -> str:
    """Return one plot with its title and lead; nothing without a plot."""
    if not body:
        return ""
    head = element("h3", escape(title)) + element("p", escape(lead))
    return element("div", head + body, class_="card plotcard")


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = (
        element("li", f'<i class="chip {escape(css)}"></i>{escape(name)}') for css, name in entries
    )
    return element("ul", "".join(items), class_="legend")


def _colour(page: Page, policy: str) -> str:
    return f"p{list(page.policies).index(policy) % 8}" if page.is_comparison else "p3"


def _groups(
    page: Page, figures: Sequence[tuple[str, str]], show: Callable[[float], str]
) -> list[BarGroup]:
    if not page.is_comparison:
        return _single_group(page, figures, show)
    groups = []
    for key, heading in figures:
        rows = []
        for name in page.policies:
            value = figure_value(page.metrics.get(name, {}), (key,))
            if value is not None:
                rows.append(Bar(name, value, show(value), _colour(page, name)))
        if rows:
            groups.append(BarGroup(heading, rows))
    return groups


def _single_group(
    page: Page, figures: Sequence[tuple[str, str]], show: Callable[[float], str]
) -> list[BarGroup]:
    """Return one bar a figure: with one policy, its name on every bar would say nothing."""
    metrics = page.metrics.get(page.policies[0], {}) if page.policies else {}
    values = [(name, figure_value(metrics, (key,))) for key, name in figures]
    rows = [Bar(name, value, show(value), "p3") for name, value in values if value is not None]
    return [BarGroup("", rows)] if rows else []


def _jct(page: Page) -> str:
    names = (("jct_mean", "Mean"), ("jct_p50", "P50"), ("jct_p90", "P90"), ("jct_p99", "P99"))
    groups = _groups(page, names, seconds)
    return bars(groups, shared_scale=True, title="Job completion time") if groups else ""


def _first_tokens(page: Page) -> str:
    names = (
        ("ttft_first_p50", "First turn, P50"),
        ("ttft_first_p99", "First turn, P99"),
        ("ttft_return_p50", "Return turn, P50"),
        ("ttft_return_p99", "Return turn, P99"),
    )
    groups = _groups(page, names, seconds)
    return bars(groups, shared_scale=False, title="Time to first token") if groups else ""


def _cdf(page: Page) -> str:
    curves = []
    for name in page.policies:
        ended = (row for run in page.runs_of(name) for row in run.programs if row.outcome in ENDED)
        values = [row.finished - row.arrival for row in ended]
        if values:
            curves.append(Curve(name, _colour(page, name), values))
    plot = cdf(curves, title="Distribution of completion times", unit="seconds")
    legend = _legend([(f"line {curve.css}", curve.label) for curve in curves])
    return plot + (legend if page.is_comparison else "") if plot else ""


def _waits(page: Page) -> str:
    rows = []
    for name in page.policies:
        split = page.metrics.get(name, {}).get("wait_seconds") or {}
        values = [(css, label, _part(split, css)) for css, label in _PHASES]
        parts = [(css, label, value, seconds(value)) for css, label, value in values]
        if any(value for _, _, value in values):
            rows.append(Stack(name, parts, seconds(sum(value for _, _, value in values))))
    if not rows:
        return ""
    other = any(value >= 0.0005 for row in rows for css, _, value, _ in row.parts if css == "free")
    legend = _legend([entry for entry in _PHASES if entry[0] != "free" or other])
    return stacks(rows, title="Where the time goes") + legend


def _part(split: Mapping[str, Any], css: str) -> float:
    """Return one state's seconds; contexts that ran side by side can make ``other`` negative."""
    return max(0.0, float(split.get("other" if css == "free" else css) or 0.0))


def _prefill(page: Page) -> str:
    def show(metrics: Metrics, value: float) -> str:
        over = figure_value(metrics, ("prefill_ratio",))
        return tokens(value) + (f", {ratio(over)}" if over else "")

    rows = []
    for name in page.policies:
        metrics = page.metrics.get(name, {})
        value = figure_value(metrics, ("prefilled_tokens",))
        if value is not None:
            rows.append(Bar(name, value, show(metrics, value), _colour(page, name)))
    ideals = [figure_value(page.metrics.get(name, {}), ("ideal_tokens",)) for name in page.policies]
    ideal = max((value for value in ideals if value is not None), default=0.0)
    if not rows or ideal <= 0:
        return ""
    groups = [BarGroup("", [*rows, Bar("ideal", ideal, tokens(ideal), "cached")])]
    return bars(groups, shared_scale=True, title="Prefilled tokens")


def _oracles(page: Page) -> str:
    oracles = next(iter(page.oracle_distance.values()), {})
    wanted = (("jct_mean", "time"), ("prefilled_tokens", "prefilled tokens"))
    groups = []
    for oracle in oracles:
        for key, name in wanted:
            found = {one: page.oracle_distance[one][oracle].get(key) for one in page.policies}
            rows = [
                Bar(policy, value, ratio(value), _colour(page, policy))
                for policy, value in found.items()
                if value is not None
            ]
            groups.append(BarGroup(f"{name}, to {oracle}", rows))
    title = "Distance to the oracles"
    return bars(groups, shared_scale=False, title=title) if groups else ""


def _pins(page: Page) -> str:
    rows = []
    for name in page.policies:
        pins = page.metrics.get(name, {}).get("pins") or {}
        parts = [
            (key, label, float(pins.get(key, 0)), f"{pins.get(key, 0):,.0f}")
            for key, label, _ in PIN_OUTCOMES
        ]
        total = sum(value for _, _, value, _ in parts)
        rows.append(Stack(name, parts, f"{number(total)} pins" if total else "no pins"))
    if not any(value for row in rows for _, _, value, _ in row.parts):
        return ""
    legend = _legend([(key, label) for key, label, _ in PIN_OUTCOMES])
    return stacks(rows, title="How pins ended", normalise=True) + legend
