"""`agentrt bench compare` over several pools and rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from agentrt.cli.bench_run import Order, new_directory, play, print_json

if TYPE_CHECKING:
    from agentrt.bench.settings import BenchSettings
    from agentrt.bench.workload import Workload

__all__ = ["play_grid"]


def play_grid(
    workload: Workload, cells: Sequence[BenchSettings], order: Order, as_json: bool
) -> None:
    """Compare in each cell, in a directory of its own; write and show what all of them found."""
    from agentrt.bench.grid import Grid, cell_name
    from agentrt.bench.report_grid import write_grid_report
    from agentrt.bench.store import write_json

    where = order.out or new_directory(workload.name)
    grid = Grid()
    for settings in cells:
        name = cell_name(settings)
        comparison, _ = play(workload, settings, replace(order, out=where / "cells" / name))
        # Its runs are on disk and in the cell's report; a grid of them does not fit memory.
        comparison.runs.clear()
        grid.cells[name] = comparison
        if not comparison.complete:
            break
    write_json(where / "grid.json", grid.to_json())
    write_grid_report(grid, where / "report.html")
    if as_json:
        print_json(grid.to_json() | {"out": str(where), "report": str(where / "report.html")})
    else:
        console = Console()
        console.print(grid.table())
        console.print(f"results: {where / 'grid.json'}", highlight=False, soft_wrap=True)
        console.print(f"report:  {where / 'report.html'}", highlight=False, soft_wrap=True)
    if not grid.complete:
        raise typer.Exit(130)
