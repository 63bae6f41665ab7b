"""Comparisons over several pools and rates: what each cell found, and where policies lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from agentrt.bench.progress import seconds
from agentrt.bench.results import Comparison
from agentrt.bench.settings import BenchSettings

__all__ = ["Grid", "cell_name"]


def cell_name(settings: BenchSettings) -> str:
    """Return a cell's directory name: its pool and rate."""
    rate = "recorded" if settings.rate is None else f"{settings.rate:g}"
    return f"pool-{settings.pool or 'auto'}-rate-{rate}"


@dataclass(slots=True)
class Grid:
    """Comparisons by cell name, in the order they were run."""

    cells: dict[str, Comparison] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether no run of any cell is missing."""
        return all(comparison.complete for comparison in self.cells.values())

    def to_json(self) -> dict[str, Any]:
        """Return the cells' results without those of single seeds, and every losing cell."""
        return {
            "format": 1,
            "complete": self.complete,
            "cells": {name: _without_seeds(one) for name, one in self.cells.items()},
            "losing_cells": [
                {"cell": cell, "policy": policy} | lost for cell, policy, lost in self.losses()
            ],
        }

    def losses(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield cell, policy and figures wherever a policy is slower than ``fcfs``."""
        for cell, comparison in self.cells.items():
            for policy, lost in comparison.losses.items():
                yield cell, policy, lost

    def table(self) -> Table:
        """Return mean completion times, a row a policy, a column a cell; losing ones are marked."""
        policies = dict.fromkeys(name for one in self.cells.values() for name in one.policies)
        table = Table(box=None, pad_edge=False, caption="mean completion time; ! worse than fcfs")
        table.add_column("policy")
        for cell in self.cells:
            table.add_column(cell, justify="right", overflow="fold")
        for policy in policies:
            table.add_row(policy, *(_cell(one, policy) for one in self.cells.values()))
        return table


def _without_seeds(comparison: Comparison) -> dict[str, Any]:
    told = comparison.to_json()
    del told["per_seed"], told["format"]
    return told


def _cell(comparison: Comparison, policy: str) -> str:
    figures = comparison.metrics.get(policy)
    if figures is None:
        return "-"
    half = comparison.intervals.get(policy, {}).get("jct_mean")
    spread = "" if half is None else f" ±{seconds((half[1] - half[0]) / 2)}"
    return seconds(figures["jct_mean"]) + spread + ("!" if policy in comparison.losses else "")
