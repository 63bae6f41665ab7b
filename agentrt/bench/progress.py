"""Shows a comparison while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agentrt.bench.recorder import RunProgress
from agentrt.bench.records import RunRecord
from agentrt.bench.results import Comparison, Metrics

__all__ = ["ComparisonView", "Silent", "oracle_table", "summary_table"]

COLUMNS = ("policy", "seed", "state", "programs", "time", "JCT mean", "prefill", "hits", "wait")
LEFT = ("policy", "state", "figure")


class Silent:
    """An observer that shows nothing."""

    def started(self, policy: str, seed: int) -> None:
        """Ignore it."""

    def progress(self, state: RunProgress) -> None:
        """Ignore it."""

    def finished(self, record: RunRecord, figures: Metrics, reused: bool) -> None:
        """Ignore it."""


@dataclass(slots=True)
class _Row:
    state: str = "waiting"
    programs: str = ""
    time: str = ""
    figures: Metrics | None = None


class ComparisonView:
    """A context manager that shows one row a run; ``console`` should write to stderr."""

    def __init__(self, console: Console, policies: list[str], seeds: list[int]) -> None:
        self._console = console
        self._rows = {(policy, seed): _Row() for policy in policies for seed in seeds}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def started(self, policy: str, seed: int) -> None:
        """A run begins."""
        self._rows[policy, seed].state = "running"
        self._line(f"{policy} seed {seed}: running")

    def progress(self, state: RunProgress) -> None:
        """A run goes on; only the live table shows it."""
        row = self._rows[state.policy, state.seed]
        row.programs = f"{state.programs_done}/{state.programs}"
        row.time = seconds(state.now)
        row.state = f"{state.running} run, {state.waiting} wait"

    def finished(self, record: RunRecord, figures: Metrics, reused: bool) -> None:
        """A run ended."""
        row = self._rows[record.policy, record.seed]
        row.state = _state(record, reused)
        row.programs = str(len(record.programs))
        row.time = seconds(figures["makespan"])
        row.figures = figures
        self._line(
            f"{record.policy} seed {record.seed}: {row.state}; {row.programs} programs, JCT mean "
            f"{seconds(figures['jct_mean'])}, prefill ratio {number(figures['prefill_ratio'])}, "
            f"longest wait {seconds(figures['longest_wait'])}"
        )

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _table(self) -> Table:
        table = _new_table(COLUMNS)
        for (policy, seed), row in self._rows.items():
            cells = [form(row.figures[key]) if row.figures else "" for key, form in LIVE_FIGURES]
            table.add_row(policy, str(seed), row.state, row.programs, row.time, *cells)
        return table


def _state(record: RunRecord, reused: bool) -> str:
    if reused:
        return "reused from an earlier run"
    return "done" if record.complete else "interrupted"


def summary_table(comparison: Comparison) -> Table:
    """Return the main figures averaged over the seeds: a column a policy, or a row if many."""
    if len(comparison.metrics) > MOST_COLUMNS:
        return _tall_table(comparison)
    heads = [
        name if figures["complete"] else f"{name} (interrupted)"
        for name, figures in comparison.metrics.items()
    ]
    table = _new_table(("figure", *heads))
    for label, key, form in SUMMARY:
        values = [figures.get(key) for figures in comparison.metrics.values()]
        if any(value is not None for value in values):
            table.add_row(label, *map(form, values))
        _add_interval(table, comparison, key, form)
    pins = [figures["pins"] for figures in comparison.metrics.values()]
    for outcome in pins[0] if pins else ():
        table.add_row(f"pins {outcome.replace('_', ' ')}", *(f"{row[outcome]:g}" for row in pins))
    return table


def _tall_table(comparison: Comparison) -> Table:
    """Return a row a policy; beside the mean time half its 95 % interval."""
    first, *others = (label for label, _, _ in TALL)
    table = _new_table(("policy", first, "± 95 %", *others))
    table.columns[0].no_wrap = True
    for policy, figures in comparison.metrics.items():
        cells = [form(figures.get(key)) for _, key, form in TALL]
        spread = comparison.intervals.get(policy, {}).get("jct_mean")
        cells.insert(1, "-" if spread is None else seconds((spread[1] - spread[0]) / 2))
        name = policy if figures["complete"] else f"{policy} (interrupted)"
        table.add_row(name, *cells)
    return table


def _add_interval(
    table: Table, comparison: Comparison, key: str, form: Callable[[float | None], str]
) -> None:
    """Add the 95 % intervals of a figure below it, where several seeds give some."""
    found = [comparison.intervals.get(name, {}).get(key) for name in comparison.metrics]
    if any(found):
        cells = ("" if one is None else f"±{form((one[1] - one[0]) / 2)}" for one in found)
        table.add_row("  95 % over seeds", *cells, style="dim")


def oracle_table(comparison: Comparison) -> Table:
    """Return each policy's distance to the oracles: 1 is as good, more is worse."""
    oracles = next(iter(comparison.oracle_distance.values()), {})
    heads = [f"{name} to {oracle}" for oracle in oracles for name in ("time", "prefilled")]
    table = _new_table(("policy", *heads))
    for policy, distance in comparison.oracle_distance.items():
        cells = [
            number(distance[oracle].get(key))
            for oracle in oracles
            for key in ("jct_mean", "prefilled_tokens")
        ]
        table.add_row(policy, *cells)
    return table


def _new_table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    return table


def seconds(value: float | None) -> str:
    """Return a time for a table: ``1,234 s``, ``12.3 s``, ``45 ms``."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def number(value: float | None) -> str:
    """Return a figure for a table, with two decimals while it is small."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return "-" if value is None else f"{value:.1%}"


LIVE_FIGURES = (
    ("jct_mean", seconds),
    ("prefill_ratio", number),
    ("prefix_hit_share", share),
    ("longest_wait", seconds),
)
MOST_COLUMNS = 7
TALL = (
    ("time mean", "jct_mean", seconds),
    ("time P90", "jct_p90", seconds),
    ("slowdown P90", "slowdown_p90", number),
    ("longest wait", "longest_wait", seconds),
    ("prefilled / ideal", "prefill_ratio", number),
    ("aged overtaken", "overtaken_aged", number),
)
SUMMARY = (
    ("completion time mean", "jct_mean", seconds),
    ("completion time P50", "jct_p50", seconds),
    ("completion time P90", "jct_p90", seconds),
    ("completion time P99", "jct_p99", seconds),
    ("slowdown mean", "slowdown_mean", number),
    ("slowdown P90", "slowdown_p90", number),
    ("evenness of slowdowns (Jain)", "slowdown_jain", number),
    ("makespan", "makespan", seconds),
    ("programs per hour", "programs_per_hour", number),
    ("first token, first turn P50", "ttft_first_p50", seconds),
    ("first token, first turn P99", "ttft_first_p99", seconds),
    ("first token, return P50", "ttft_return_p50", seconds),
    ("first token, return P99", "ttft_return_p99", seconds),
    ("longest wait", "longest_wait", seconds),
    ("turns aged past max_wait", "aged_turns", number),
    ("turns that starved", "starved_turns", number),
    ("aged turns overtaken", "overtaken_aged", number),
    ("deadlines met", "deadlines_met", share),
    ("prefilled / ideal tokens", "prefill_ratio", number),
    ("prefilled / least for its order", "kept_ratio", number),
    ("hits / ideal hits", "prefix_hit_share", share),
    ("preemptions", "preemptions", number),
)
