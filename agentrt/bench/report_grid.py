"""The report of a grid of comparisons, of capacities, and of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrt.bench.ablate import FIGURES, Ablation
from agentrt.bench.capacity import Capacity
from agentrt.bench.capacity_report import CapacityTable, rate_text
from agentrt.bench.grid import Grid
from agentrt.bench.report_html import number, ratio, seconds
from agentrt.bench.report_plain import PlainPage, plots, table, write_plain
from agentrt.bench.report_plots import Bar, BarGroup, bars
from agentrt.bench.results import Comparison

__all__ = ["write_ablation_report", "write_capacity_report", "write_grid_report"]


def _colour(place: int) -> str:
    return f"p{place % 8}"


def write_grid_report(grid: Grid, path: Path) -> None:
    """Write the report of a grid: completion times by cell, and every losing cell."""
    first = next(iter(grid.cells.values()))
    lost = list(grid.losses())
    groups = [BarGroup(cell, _jct_bars(one)) for cell, one in grid.cells.items()]
    sections = [
        plots(
            [
                (
                    "Mean completion time",
                    "Each pool and rate on its own scale.",
                    bars(groups, shared_scale=False, title="Mean completion time by cell"),
                )
            ]
        ),
        table("cells", "Cells", "Mean completion time, with its 95 % interval.", _rows(grid)),
    ]
    if lost:
        sections.append(
            table("losing", "Losing cells", "Slower than fcfs by more than 1 %.", _lost_rows(lost))
        )
    headline = f"{len(grid.cells)} cells, {len(first.policies)} policies; {len(lost)} cells lose."
    page = PlainPage(
        "Policy comparison",
        first.workload.name,
        headline,
        sections,
        first.command,
        first.machine,
        first.created,
    )
    write_plain(page, path)


def _jct_bars(comparison: Comparison) -> list[Bar]:
    return [
        Bar(name, value, seconds(value), _colour(place))
        for place, name in enumerate(comparison.policies)
        if (value := comparison.metrics.get(name, {}).get("jct_mean")) is not None
    ]


def _rows(grid: Grid) -> list[list[str]]:
    policies = list(dict.fromkeys(name for one in grid.cells.values() for name in one.policies))
    rows = [["Pool, rate", *policies]]
    for cell, one in grid.cells.items():
        rows.append([cell, *(_cell(one, name) for name in policies)])
    return rows


def _cell(comparison: Comparison, policy: str) -> str:
    value = comparison.metrics.get(policy, {}).get("jct_mean")
    if value is None:
        return "–"
    low_high = comparison.intervals.get(policy, {}).get("jct_mean")
    return seconds(value) + (f" ± {number((low_high[1] - low_high[0]) / 2)}" if low_high else "")


def _lost_rows(lost: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[list[str]]:
    rows = [["Pool, rate", "policy", "to fcfs", "seeds worse"]]
    for cell, policy, one in lost:
        rows.append([cell, policy, ratio(one["ratio"]), f"{one['seeds_worse']} of {one['seeds']}"])
    return rows


def write_capacity_report(
    found: CapacityTable, path: Path, *, command: str, machine: Mapping[str, Any], created: str
) -> None:
    """Write the report of a capacity search."""
    groups = [
        BarGroup(
            f"pool of {pool:,} tokens",
            [
                Bar(name, one.rate, _capacity_text(found, pool, one), _colour(place))
                for place, (name, one) in enumerate(rows.items())
            ],
        )
        for pool, rows in found.pools.items()
    ]
    lead = f"Highest rate with a P90 slowdown of at most {found.goal.slowdown:g}."
    plot = bars(groups, shared_scale=True, title="Capacity by pool and policy")
    sections = [
        plots([("Capacity", f"{lead} Programs a second; times fcfs's.", plot)]),
        table("capacities", "Capacities", lead, _capacity_rows(found)),
    ]
    seeds = len(found.goal.seeds)
    page = PlainPage(
        "Capacity",
        found.workload.name,
        f"{lead} The mean over {seeds} arrival seeds, found to {found.goal.resolution:g}/s.",
        sections,
        command,
        machine,
        created,
    )
    write_plain(page, path)


def _capacity_text(found: CapacityTable, pool: int, one: Capacity) -> str:
    times, _ = found.ratios(pool, one.policy)
    return rate_text(one) + ("" if times is None else f", {ratio(times)}")


def _capacity_rows(found: CapacityTable) -> list[list[str]]:
    rows = [["Policy", "pool", "programs/s", "P90 slowdown", "to fcfs", "to best fixed TTL"]]
    for pool, capacities in found.pools.items():
        for name, one in capacities.items():
            to_base, to_ttl = (
                "–" if value is None else f"{value:.2f}×" for value in found.ratios(pool, name)
            )
            slow = "–" if one.slowdown is None else f"{one.slowdown:.2f}"
            rows.append([name, f"{pool:,}", rate_text(one), slow, to_base, to_ttl])
    return rows


def write_ablation_report(ablation: Ablation, path: Path) -> None:
    """Write the report of an ablation."""
    off = [name for name in ablation.policies if name != "nothing"]
    groups = []
    for figure, label in FIGURES:
        found = [(name, ablation.worth(name, figure)) for name in off]
        rows = [
            Bar(name, one["ratio"], ratio(one["ratio"]), _colour(place))
            for place, (name, one) in enumerate(found)
            if one is not None
        ]
        groups.append(BarGroup(label, rows))
    comparison = ablation.comparison
    lead = "The figure without an ingredient over that with all of them; above 1 it helps."
    plot = bars(groups, shared_scale=False, title="What each ingredient is worth")
    cells = [["Without", *(label for _, label in FIGURES)], *ablation.rows()]
    page = PlainPage(
        "Ablation",
        f"{ablation.policies['nothing']} on {comparison.workload.name}",
        f"What each of {len(off)} variants loses, means over the seeds.",
        [
            plots([("What each ingredient is worth", lead, plot)]),
            table("figures", "Figures", lead, cells),
        ],
        comparison.command,
        comparison.machine,
        comparison.created,
    )
    write_plain(page, path)
