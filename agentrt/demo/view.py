"""Shows a run of the demo: a live table on a terminal, one line an event anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentrt.demo.progress import Row, RowState

__all__ = ["View", "closing_table", "live_table"]

STYLES: Mapping[RowState, str] = {
    "waiting": "dim",
    "thinking": "cyan",
    "running": "yellow",
    "testing": "magenta",
    "resolved": "bold green",
    "unresolved": "bold red",
    "failed": "bold red",
    "cancelled": "red",
}

CLOSING_COLUMNS: Mapping[str, JustifyMethod] = {
    "program": "left",
    "bug": "left",
    "turns": "right",
    "tokens": "right",
    "cached": "right",
    "seconds": "right",
}
"""Narrow enough, with the verdict, for a terminal of 80 columns."""


class View:
    """A context manager that shows rows while a run goes on; ``observe`` is the run's observer."""

    def __init__(
        self, console: Console, rows: Mapping[str, Row], clock: Callable[[], float]
    ) -> None:
        self._console = console
        self._rows = rows
        self._clock = clock
        self._start = clock()
        self._live = (
            Live(get_renderable=self._table, console=console, refresh_per_second=5, transient=True)
            if console.is_terminal
            else None
        )

    def observe(self, row: Row, text: str) -> None:
        """Show that a row has changed."""
        if self._live is None and text:
            now = self._clock() - self._start
            line = Text(f"{now:6.1f}s  {row.name:<14} {text}")
            self._console.print(line, soft_wrap=True)

    def _table(self) -> Table:
        return live_table(self._rows.values(), self._clock() - self._start)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def live_table(rows: Iterable[Row], seconds: float) -> Table:
    """Return one line a program: state, turn, last command, tokens, cached share."""
    table = Table(title=f"agents at work, {seconds:.0f} s", title_justify="left", expand=True)
    table.add_column("program", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("turn", justify="right", no_wrap=True)
    table.add_column("last command", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("cached", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            Text(row.state, style=STYLES[row.state]),
            f"{row.turn}/{row.turns}",
            Text(" ".join(row.command.split())),
            f"{row.prompt_tokens + row.output_tokens:,}",
            f"{row.cached_share:.0%}",
        )
    return table


def closing_table(rows: Iterable[Row]) -> Table:
    """Return how every program ended."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in CLOSING_COLUMNS.items():
        table.add_column(name, justify=justify, no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=10)
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            f"{row.turn}/{row.turns}",
            f"{row.prompt_tokens + row.output_tokens:,}",
            f"{row.cached_share:.0%}",
            f"{(row.finished or 0.0) - row.started:.1f}",
            Text(_verdict(row), style=STYLES[row.state]),
        )
    return table


def _verdict(row: Row) -> str:
    """A resolved row says no more, unless there is more to say than that its tests pass."""
    plain = row.state == "resolved" and row.detail == "tests pass"
    return row.state if plain else f"{row.state}: {row.detail}"
