"""`agentrt bench draft`: what drafting saves on recorded sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from agentrt.cli.bench_options import AsJson, Limit, Model, WorkloadPath
from agentrt.cli.bench_run import print_json

if TYPE_CHECKING:
    from agentrt.bench.drafting import DraftSavings

__all__ = ["draft"]


def draft(
    workload: WorkloadPath, model: Model = None, limit: Limit = None, as_json: AsJson = False
) -> None:
    """Count the decode steps that guesses save, where the recorded answers decide.

    Example: agentrt bench draft sessions/
    """
    from dataclasses import replace

    from agentrt.bench.drafting import measure_drafting
    from agentrt.bench.importers import load_workload
    from agentrt.engine.model.make import ensure_default_model
    from agentrt.engine.tokens import Tokenizer

    directory = Path(model) if model is not None else ensure_default_model()
    loaded = load_workload(workload)
    kept = replace(loaded, programs=loaded.programs[:limit])
    rows = measure_drafting(kept, Tokenizer.from_directory(directory))
    if as_json:
        print_json({"tokenizer": directory.name, "rows": [row.to_json() for row in rows]})
    else:
        Console().print(_table(rows))


def _table(rows: list[DraftSavings]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("session", "turns", "tokens", "steps", "fewer", "guessed", "came true")
    for name in columns:
        table.add_column(name, justify="left" if name == "session" else "right")
    for row in rows:
        figures = (row.turns, row.tokens, row.steps)
        table.add_row(
            row.name,
            *(f"{figure:,}" for figure in figures),
            f"{row.fewer:.2f} x",
            f"{row.drafted:,}",
            f"{row.acceptance:.0%}",
        )
    return table
