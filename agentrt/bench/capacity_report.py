"""Capacities of several policies and pools as a table, and as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from agentrt.bench.capacity import Capacity, CapacityGoal
from agentrt.bench.policies import best_fixed_ttl
from agentrt.bench.results import WorkloadFacts

__all__ = ["CapacityTable", "rate_text"]

BASELINE = "fcfs"


@dataclass(slots=True)
class CapacityTable:
    """What ``agentrt bench capacity`` found; ``complete``: nothing is missing."""

    workload: WorkloadFacts
    goal: CapacityGoal
    policies: list[str]
    pools: dict[int, dict[str, Capacity]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = True

    def add(self, settings: Mapping[str, Any], pool: int, found: Mapping[str, Capacity]) -> None:
        """Add one pool's capacities."""
        self.pools[pool] = dict(found)
        self.settings = {
            key: value for key, value in settings.items() if key not in ("rate", "pool_tokens")
        }

    def ratios(self, pool: int, policy: str) -> tuple[float | None, float | None]:
        """Return the policy's rate over ``fcfs``'s, and over the best swept fixed TTL's."""
        found = self.pools[pool]
        best = best_fixed_ttl([(name, one.rate) for name, one in found.items()])
        rate = found[policy].rate
        base = found[BASELINE].rate if BASELINE in found else None
        return _ratio(rate, base), _ratio(rate, best[1] if best else None)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts: the same whenever the same search is repeated."""
        return {
            "format": 1,
            "complete": self.complete,
            "workload": self.workload.to_json(),
            "settings": self.settings,
            "slowdown": self.goal.slowdown,
            "resolution": self.goal.resolution,
            "seeds": list(self.goal.seeds),
            "pools": {str(pool): self._pool_json(pool) for pool in self.pools},
        }

    def _pool_json(self, pool: int) -> dict[str, Any]:
        rows = {}
        for policy, one in self.pools[pool].items():
            to_base, to_ttl = self.ratios(pool, policy)
            rows[policy] = one.to_json() | {"to_fcfs": to_base, "to_best_fixed_ttl": to_ttl}
        return rows

    def rich_tables(self) -> Iterator[Table]:
        """Yield one table a pool."""
        for pool in self.pools:
            table = Table(title=f"pool {pool:,} tokens", title_justify="left", box=None)
            table.add_column("policy")
            for name in ("programs/s", "P90 slowdown", "to fcfs", "to best fixed TTL"):
                table.add_column(name, justify="right")
            for policy, one in self.pools[pool].items():
                ratios = self.ratios(pool, policy)
                table.add_row(policy, rate_text(one), _figure(one.slowdown), *map(_times, ratios))
            yield table


def _ratio(value: float, base: float | None) -> float | None:
    return value / base if base else None


def rate_text(one: Capacity) -> str:
    """Return a capacity in programs a second, marked where the search hit an end."""
    if one.rate == 0:
        return f"< {one.next_rate:.5f}"
    return f"{one.rate:.5f}" if one.next_rate is not None else f">= {one.rate:.5f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
