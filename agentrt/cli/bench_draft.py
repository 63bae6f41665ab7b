"""`agentrt bench draft` and `masks`: what guesses save, and what grammars cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentrt.cli.bench_options import AsJson, Limit, Model, WorkloadPath
from agentrt.cli.bench_run import print_json

if TYPE_CHECKING:
    from agentrt.bench.drafting import DraftSavings

__all__ = ["draft", "masks"]


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


def masks(
    model: Model = None,
    turns: Annotated[int, typer.Option(min=1, help="Turns that decode together.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Decode steps at most.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Measure what a grammar of JSON objects adds to decode steps.

    Example: agentrt bench masks --turns 32
    """
    from agentrt.bench.masks import measure_masks
    from agentrt.engine.model.make import ensure_default_model

    directory = Path(model) if model is not None else ensure_default_model()
    cost = measure_masks(directory, turns, steps)
    if as_json:
        print_json({"model": directory.name, **cost.to_json()})
    else:
        Console(highlight=False).print(
            f"{cost.turns} turns, {cost.steps} steps: {cost.plain_step:.2f} ms a step without a "
            f"grammar, {cost.grammar_step:.2f} with; a mask takes {cost.mask_us:.0f} µs, and a "
            f"step waited {1e3 * cost.waiting:.1f} µs for masks."
        )
