"""The figures of a report: which there are, how they read, which policy is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.bench.report_html import element, escape, number, percent, ratio, seconds, tokens
from agentrt.bench.service import SLO_FACTORS

__all__ = [
    "PIN_OUTCOMES",
    "Figure",
    "best_policy",
    "comparison_sentence",
    "figure_value",
    "figures_table",
]

Metrics: TypeAlias = Mapping[str, Any]
Better: TypeAlias = Literal["lower", "higher", "neither"]
Intervals: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]
NO_INTERVALS: Intervals = {}

PIN_OUTCOMES = (
    ("handed_off", "handed off", "the program came back and used the kept KV"),
    ("expired", "expired", "its time to live ended first"),
    (
        "broken",
        "broken",
        "taken by a turn that had waited too long, or that nothing else could run",
    ),
    ("final", "final", "released because the program ended"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: ``path`` leads to the number inside a policy's metrics."""

    path: tuple[str, ...]
    name: str
    show: Callable[[float], str]
    better: Better = "lower"
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    heading: str
    hint: str
    figures: tuple[Figure, ...]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _groups() -> tuple[_Group, ...]:
    pins = tuple(
        Figure(("pins", key), name, _count, "neither", hint) for key, name, hint in PIN_OUTCOMES
    )
    return (
        _Group(
            "Job completion time",
            "from a program's arrival to its end",
            (
                Figure(("jct_mean",), "mean", seconds),
                Figure(("jct_p50",), "P50", seconds),
                Figure(("jct_p90",), "P90", seconds),
                Figure(("jct_p99",), "P99", seconds),
                Figure(("slowdown_mean",), "slowdown, mean", ratio, hint="against running alone"),
                Figure(("slowdown_p90",), "slowdown, P90", ratio),
            ),
        ),
        _Group(
            "Throughput",
            "of the whole run",
            (
                Figure(("makespan",), "makespan", seconds, hint="first arrival to last end"),
                Figure(("programs_per_hour",), "programs per hour", number, "higher"),
            ),
        ),
        _Group(
            "Time to first token",
            "from a turn's submission",
            (
                Figure(("ttft_first_p50",), "first turn, P50", seconds),
                Figure(("ttft_first_p99",), "first turn, P99", seconds),
                Figure(("ttft_return_p50",), "return turn, P50", seconds),
                Figure(("ttft_return_p99",), "return turn, P99", seconds),
                Figure(
                    ("longest_wait",), "longest wait", seconds, hint="of any turn for its start"
                ),
            ),
        ),
        _Group(
            "Prefill",
            "tokens computed before a turn's first output",
            (
                Figure(("prefilled_tokens",), "prefilled", tokens),
                Figure(("ideal_tokens",), "ideal", tokens, "neither", "with an infinite cache"),
                Figure(("prefill_ratio",), "prefilled / ideal", ratio),
                Figure(
                    ("prefix_hit_share",),
                    "prefix hits",
                    percent,
                    "higher",
                    "of an infinite cache's",
                ),
            ),
        ),
        _Group("Evenness", "who waited, and how much slower than alone", _service_figures()),
        _Group("KV pins", "how each pin ended", pins),
        _Group(
            "KV pool",
            "share of its tokens in use",
            (
                Figure(("kv", "leased_mean"), "leased, mean", percent, "neither"),
                Figure(("kv", "leased_max"), "leased, most", percent, "neither"),
                Figure(("kv", "pinned_mean"), "pinned, mean", percent, "neither"),
                Figure(("preemptions",), "preemptions", _count),
            ),
        ),
    )


def _service_figures() -> tuple[Figure, ...]:
    within = tuple(
        Figure(("slo", f"{most:g}"), f"ended within {most:g}×", percent, "higher", hint)
        for most, hint in zip(SLO_FACTORS, ("of the time alone", *[""] * 9), strict=False)
    )
    return (
        Figure(("slowdown_jain",), "Jain index of slowdowns", number, "higher"),
        *within,
        Figure(("deadlines_met",), "deadlines met", percent, "higher"),
        Figure(("aged_turns",), "turns aged past the waiting bound", _count),
        Figure(("starved_turns",), "turns that waited over 30 min", _count),
        Figure(("overtaken_aged",), "turns that overtook an aged one", _count),
    )


def figure_value(metrics: Metrics, path: Sequence[str]) -> float | None:
    """Return the number at ``path``, or None where the run has none."""
    value: Any = metrics
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def best_policy(policies: Sequence[str], metrics: Mapping[str, Metrics]) -> str | None:
    """Return the policy with the lowest mean job completion time; None if none has one."""
    known = {name: figure_value(metrics.get(name, {}), ("jct_mean",)) for name in policies}
    ranked = [(value, name) for name, value in known.items() if value is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def comparison_sentence(policies: Sequence[str], metrics: Mapping[str, Metrics]) -> str:
    """Return the key result as one sentence, against ``fcfs`` or else the slowest policy."""
    best = best_policy(policies, metrics)
    if best is None:
        return "No program has finished yet."
    mean = {name: figure_value(metrics.get(name, {}), ("jct_mean",)) or 0.0 for name in policies}
    if len(policies) < 2:
        return f"Under {best} a program takes {seconds(mean[best])} on average."
    baseline = "fcfs" if "fcfs" in policies else max(policies, key=lambda name: mean[name])
    if best == baseline or mean[best] <= 0:
        return f"{best} is the fastest: a program takes {seconds(mean[best])} on average."
    gain = (
        f"{best} finishes a program in {seconds(mean[best])} on average, "
        f"{ratio(mean[baseline] / mean[best])} faster than {baseline} ({seconds(mean[baseline])})"
    )
    return gain + _prefill_clause(metrics[best], metrics.get(baseline, {})) + "."


def _prefill_clause(best: Metrics, baseline: Metrics) -> str:
    mine = figure_value(best, ("prefilled_tokens",))
    theirs = figure_value(baseline, ("prefilled_tokens",))
    if not mine or not theirs or theirs / mine < 1.05:
        return ""
    return f", and prefills {ratio(theirs / mine)} fewer tokens"


def figures_table(
    policies: Sequence[str], metrics: Mapping[str, Metrics], intervals: Intervals = NO_INTERVALS
) -> str:
    """Return all figures as an HTML table, one column a policy, the best cell of a row marked."""
    head = "".join(
        element("th", f'<i class="chip p{place % 8}"></i>{escape(name)}', scope="col", class_="num")
        for place, name in enumerate(policies)
    )
    body = "".join(_group_rows(group, policies, metrics, intervals) for group in _groups())
    note = "" if len(policies) < 2 else '<p class="note">● marks the best policy of a row.</p>'
    return (
        '<div class="scroll"><table class="figures">'
        '<caption class="sr">Figures per policy</caption>'
        f'<thead><tr><th scope="col">Figure</th>{head}</tr></thead>{body}</table></div>{note}'
    )


def _group_rows(
    group: _Group,
    policies: Sequence[str],
    metrics: Mapping[str, Metrics],
    intervals: Intervals,
) -> str:
    rows = []
    for figure in group.figures:
        values = [figure_value(metrics.get(name, {}), figure.path) for name in policies]
        spreads = [_spread(intervals.get(name, {}).get(figure.path[0])) for name in policies]
        if any(value is not None for value in values):
            rows.append(_row(figure, values, spreads))
    if not rows:
        return ""
    heading = (
        f'<tr class="group"><th scope="rowgroup" colspan="{len(policies) + 1}">'
        f"{escape(group.heading)} <span>{escape(group.hint)}</span></th></tr>"
    )
    return f"<tbody>{heading}{''.join(rows)}</tbody>"


def _spread(found: Sequence[float] | None) -> str:
    """Return half an interval's width as text."""
    if found is None:
        return ""
    return f' <span class="hint">±{escape(number((found[1] - found[0]) / 2))}</span>'


def _row(figure: Figure, values: Sequence[float | None], spreads: Sequence[str]) -> str:
    best = _best(figure.better, values)
    cells = []
    for value, spread in zip(values, spreads, strict=True):
        text = "–" if value is None else figure.show(value)
        if value is not None and value == best:
            text = f'<b title="best">{escape(text)}<i class="dot" aria-hidden="true">●</i></b>'
            cells.append(f'<td class="num best">{text}{spread}</td>')
        else:
            cells.append(f'<td class="num">{escape(text)}{spread}</td>')
    name = escape(figure.name)
    if figure.hint:
        name += f' <span class="hint">{escape(figure.hint)}</span>'
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _best(better: Better, values: Sequence[float | None]) -> float | None:
    """Return the best value; None where none is to be marked (one policy, all alike, no order)."""
    known = [value for value in values if value is not None]
    if better == "neither" or len(known) < 2 or min(known) == max(known):
        return None
    return min(known) if better == "lower" else max(known)
