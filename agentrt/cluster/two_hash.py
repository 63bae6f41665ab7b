"""DualMap: two hashes give two candidates; prefer the one that has the prefix.

Source: DualMap, arXiv 2602.06502: two independent hashes of the prefix choose two instances; the
one with the hit is taken unless its time to first token would break the objective, then the less
loaded. The candidates come from rendezvous hashing here, so that scaling moves few of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from agentrt.cluster.hashing import rendezvous
from agentrt.cluster.placement import ClusterView, TurnAsk, WorkerView

__all__ = ["TwoHash"]


@dataclass(frozen=True, slots=True)
class TwoHash:
    """Args: ``objective``: seconds to the first token; ``prefill_token_seconds``: of one token."""

    objective: float = 5.0
    prefill_token_seconds: float = 0.09e-3

    def __call__(self, ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
        """Return the candidate with the longest cached prefix that meets the objective."""
        ranked = self._candidates(ask, home, cluster)
        best = max(ranked, key=lambda worker: cluster.cached(worker.name, ask))
        if cluster.cached(best.name, ask) and self._seconds(best, ask, cluster) <= self.objective:
            return best.name
        return min(ranked, key=lambda worker: (worker.load, worker.pressure)).name

    def _candidates(self, ask: TurnAsk, home: str | None, cluster: ClusterView) -> list[WorkerView]:
        """The two hashed workers; a session that already lives elsewhere is not torn away."""
        key: Hashable = ask.keys[0] if ask.keys else ask.program_id
        names = rendezvous(key, (worker.name for worker in cluster.accepting()), 2)
        if home is not None and home not in names:
            names.append(home)
        found = (cluster.worker(name) for name in names)
        return [worker for worker in found if worker is not None]

    def _seconds(self, worker: WorkerView, ask: TurnAsk, cluster: ClusterView) -> float:
        """Estimate the time to first token: what is to be prefilled before it, and its own."""
        own = ask.prompt_tokens - cluster.cached(worker.name, ask)
        return self.prefill_token_seconds * (worker.uncomputed + own)
