"""Workers of a simulated cluster that serve the same part of a turn, and who places turns on them.

Merged, one group serves whole turns. Split, one prefills and another decodes, and KV crosses the
network between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from agentrt.cluster.router import Router
from agentrt.scheduling.plan import SchedulerStatistics
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["Group", "total"]


@dataclass(slots=True, eq=False)
class Group:
    """Args: ``make`` makes the worker of a name, for the start and for scaling up."""

    name: str
    router: Router
    make: Callable[[str], SimulatedWorker]
    workers: dict[str, SimulatedWorker] = field(default_factory=dict)
    _made: int = 0

    def grow(self, count: int, now: float) -> None:
        """Let ``count`` new workers join."""
        for _ in range(count):
            name = f"{self.name}-{self._made}"
            self._made += 1
            worker = self.workers[name] = self.make(name)
            tokens = worker.cache.total * worker.cache.page_size
            seats = worker.cost.max_seqs
            self.router.add_worker(name, capacity=tokens, seats=seats, now=now)


def total(parts: Iterable[SchedulerStatistics]) -> SchedulerStatistics:
    """Return the sum of several schedulers' gauges and counters; of the longest wait, the most."""
    rows = list(parts)
    if len(rows) == 1:
        return rows[0]
    sums = {row.name: sum(getattr(part, row.name) for part in rows) for row in fields(rows[0])}
    sums["page_size"] = rows[0].page_size
    sums["longest_wait"] = max(part.longest_wait for part in rows)
    return SchedulerStatistics(**sums)
