"""Prefix-aware placement: exploit a long match, else explore where work is least.

Source: Preble, ICLR 2025 (E2): exploit the worker with the longest match if more of the prompt is
cached there than not; else take the least sum of load and missed prefill.
"""

from __future__ import annotations

from agentrt.cluster.placement import ClusterView, TurnAsk, WorkerView

__all__ = ["prefix_aware"]


def prefix_aware(ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
    """Return the worker with the longest match, or the one with the least work for this turn."""
    workers = cluster.accepting()
    cached = {worker.name: cluster.cached(worker.name, ask) for worker in workers}
    best = max(workers, key=lambda worker: (cached[worker.name], -worker.load))
    if 2 * cached[best.name] > ask.prompt_tokens:
        return best.name

    def work(worker: WorkerView) -> tuple[float, float]:
        missed = ask.prompt_tokens - cached[worker.name]
        return (worker.uncomputed + missed, worker.load)

    return min(workers, key=work).name
