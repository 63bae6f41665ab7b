"""Session affinity: as published by SAGA, with a load bound, and ours, by working sets."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.cluster.baselines import lightest
from agentrt.cluster.placement import ClusterView, TurnAsk

__all__ = ["BoundedAffinity", "by_working_set"]


@dataclass(frozen=True, slots=True)
class BoundedAffinity:
    """``w* if load(w*) < bound and cached(w*, s) else argmin_w load(w)``.

    Source: SAGA, arXiv 2605.00528, section 5; published bound 0.8.
    """

    bound: float = 0.8

    def __call__(self, ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
        """Return the session's own worker while it is below the bound and holds its KV."""
        worker = cluster.worker(home) if home is not None else None
        if worker is not None and worker.load < self.bound and cluster.cached(worker.name, ask):
            return worker.name
        return lightest(cluster).name


def by_working_set(ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
    """Keep a session at home whatever the load; start it where working sets leave most room.

    A session that leaves pays a prefill or a transfer of its whole history, and the load that it
    flees is over in seconds; so it moves only by stealing, once it has really waited. What decides
    over many turns is that the working sets of all sessions of a worker fit its pool, and that is
    settled when a session starts.
    """
    if home is not None and cluster.worker(home) is not None:
        return home
    return min(cluster.accepting(), key=lambda worker: (worker.pressure, worker.load)).name
