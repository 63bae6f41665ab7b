"""Placements that know nothing of sessions: round-robin, and the least loaded worker."""

from __future__ import annotations

from agentrt.cluster.placement import ClusterView, TurnAsk, WorkerView

__all__ = ["RoundRobin", "least_loaded", "lightest"]


def lightest(workers: ClusterView) -> WorkerView:
    """Return the worker with the least load, then the smallest working set; the first on ties."""
    return min(workers.accepting(), key=lambda worker: (worker.load, worker.pressure))


def least_loaded(ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
    """Send every turn to the worker with the least load, wherever its KV lies."""
    return lightest(cluster).name


class RoundRobin:
    """Sends turns to the workers in turn."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
        """Return the worker after the one before."""
        workers = cluster.accepting()
        chosen = workers[self._next % len(workers)]
        self._next += 1
        return chosen.name
