"""The results as a reader meets them: the table of the terminal, and the sentence above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["COLUMNS", "headline", "outcome_line", "policy_row", "summary_table"]

Show = Callable[[Any], str]


def times(value: float | None) -> str:
    """Return a ratio: ``1.04x``."""
    return "-" if value is None else f"{value:.2f}x"


def seconds(value: float | None) -> str:
    """Return seconds: ``2.06 s``."""
    return "-" if value is None else f"{value:.2f} s"


COLUMNS: tuple[tuple[str, str, Show], ...] = (
    ("high vs alone", "high_slowdown", times),
    ("slower low vs uncontended", "low_slowdown", times),
    ("slower low vs alone", "low_slowdown_alone", times),
    ("total", "total", seconds),
    ("total vs serialise", "total_vs_serialise", times),
)
"""Heading, key of the results, and how the figure is written."""


def survivors(figures: Mapping[str, Any]) -> str:
    """Return ``3/3 in 10/10``: the fewest that survived, and how many runs lost nobody."""
    fewest = f"{figures['survivors']}/{figures['programs']}"
    return f"{fewest}, all in {figures['runs_without_kill']}/{figures['n']} runs"


def with_interval(figures: Mapping[str, Any], key: str, show: Show) -> str:
    """Return a mean with its interval, where there is one."""
    interval = figures["intervals"][key]
    mean = show(figures[key])
    if figures[key] is None or interval is None:
        return mean
    low, high = (show(bound).rstrip("x s") for bound in interval)
    return f"{mean} [{low}, {high}]"


def policy_row(figures: Mapping[str, Any]) -> list[str]:
    """Return a policy's cells: survivors, then ``COLUMNS`` with intervals, then the test."""
    cells = [with_interval(figures, key, show) for _, key, show in COLUMNS]
    return [survivors(figures), *cells]


def summary_table(policies: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of all policies."""
    table = Table(box=None, pad_edge=False)
    table.add_column("policy", overflow="fold")
    for name in ("least survivors", *(heading for heading, _, _ in COLUMNS)):
        table.add_column(name, justify="right", overflow="fold")
    for name, figures in policies.items():
        table.add_row(name, *policy_row(figures))
    return table


def headline(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the experiment says of agentrt, or of what was run, in one sentence."""
    figures = policies.get("agentrt")
    if figures is None:
        whole = [name for name, one in policies.items() if one["survivors"] == one["programs"]]
        return f"Nobody was killed under: {', '.join(whole) or 'no policy'}."
    kept = f"{figures['runs_without_kill']} of {figures['n']} runs lost nobody"
    ratio = figures["total_vs_serialise"]
    return (
        f"Under agentrt {kept}; the high priority took {times(figures['high_slowdown'])} of its "
        f"time alone, the slower low one {times(figures['low_slowdown'])} of "
        "its time with memory for all"
        + (
            f", and all together {times(ratio)} of what one after the other takes."
            if ratio
            else "."
        )
    )


def outcome_line(roles: Mapping[str, Any]) -> str:
    """Return one cell's result: ``high 2.06 s, low1 killed``."""
    return ", ".join(
        f"{name} {seconds(role.total) if role.survived else 'killed'}"
        for name, role in roles.items()
    )


def per_run(figures: Mapping[str, Any], keys: Sequence[str]) -> list[list[str]]:
    """Return a policy's runs as rows: number, survivors, then the given figures."""
    shows = {key: show for _, key, show in COLUMNS}
    return [
        [str(row["run"]), str(row["survivors"]), *(shows[key](row[key]) for key in keys)]
        for row in figures["runs"]
    ]
