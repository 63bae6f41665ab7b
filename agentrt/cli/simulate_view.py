"""What `agentrt simulate` shows: a line while it runs, a table of figures at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from agentrt.bench.progress import number, seconds, share
from agentrt.bench.recorder import Progress, RunProgress
from agentrt.simulation.scenario import Outcome

__all__ = ["ProgressLine", "figures_table"]

Cell: TypeAlias = Callable[[Outcome], str]


class ProgressLine:
    """One line on stderr that says where a run stands; on a terminal it is written over."""

    EVERY = 10.0

    def __init__(self, label: str, quiet: bool) -> None:
        self._label = label
        self._console = Console(stderr=True, quiet=quiet)
        self._status = self._console.status(f"{label}: begins")
        self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status.start()
        return self._show

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def _show(self, state: RunProgress) -> None:
        text = (
            f"{self._label}: {state.programs_done:,} of {state.programs:,} programs, "
            f"{state.turns_done:,} of {state.turns:,} turns, {state.now:,.0f} s of virtual time, "
            f"{state.running} run, {state.waiting} wait"
        )
        if self._console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._told >= self.EVERY:
            self._told = time.monotonic()
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def figures_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the main figures, one column a run."""
    table = Table(box=None, pad_edge=False)
    for name in ("figure", *(outcome.label for outcome in outcomes)):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, cell in FIGURES:
        table.add_row(name, *(cell(outcome) for outcome in outcomes))
    return table


def _figure(name: str, form: Callable[[float | None], str]) -> Cell:
    return lambda outcome: form(outcome.figures.get(name))


def _programs(outcome: Outcome) -> str:
    counts = outcome.figures["programs"]
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _routed(name: str) -> Cell:
    return lambda outcome: f"{sum(row[name] for row in outcome.parts['routers']):,}"


def _tools(outcome: Outcome) -> str:
    tools = outcome.parts["tools"]
    return "-" if tools is None else f"{tools['waited']:,} of {tools['calls']:,}"


def _tokens_sent(outcome: Outcome) -> str:
    return f"{outcome.parts['network']['tokens']:,}"


def _took(outcome: Outcome) -> str:
    return f"{outcome.wall_seconds:.1f} ({outcome.cpu_seconds:.1f} CPU)"


FIGURES: tuple[tuple[str, Cell], ...] = (
    ("programs", _programs),
    ("completion time mean", _figure("jct_mean", seconds)),
    ("completion time P90", _figure("jct_p90", seconds)),
    ("completion time P99", _figure("jct_p99", seconds)),
    ("slowdown P90", _figure("slowdown_p90", number)),
    ("programs per hour", _figure("programs_per_hour", number)),
    ("first token, first turn P99", _figure("ttft_first_p99", seconds)),
    ("first token, return P99", _figure("ttft_return_p99", seconds)),
    ("longest wait", _figure("longest_wait", seconds)),
    ("prefilled / ideal tokens", _figure("prefill_ratio", number)),
    ("hits / ideal hits", _figure("prefix_hit_share", share)),
    ("turns that moved", _routed("moves")),
    ("steals", _routed("steals")),
    ("tokens over the network", _tokens_sent),
    ("tool calls that waited", _tools),
    ("steps", lambda outcome: f"{outcome.parts['steps']:,}"),
    ("seconds to simulate", _took),
)
