"""What a comparison of policies found: what ``results.json`` and the report are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from agentrt.bench.records import RunRecord

__all__ = ["Comparison", "Metrics", "WorkloadFacts"]

Metrics: TypeAlias = dict[str, Any]
"""One run's figures by name (see ``agentrt.bench.metrics``): numbers in seconds, tokens or shares,
and the small dicts ``pins``, ``wait_seconds`` and ``kv``."""


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """What was replayed, after limit, contexts and scale were applied. Counts are tokens."""

    name: str
    source: str
    programs: int
    turns: int
    prompt_tokens: int
    ideal_tokens: int
    output_tokens: int
    tool_seconds: float
    literal: bool

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


@dataclass(slots=True)
class Comparison:
    """Several policies on the same seeded arrivals.

    Attributes:
        workload: what was replayed.
        policies: names in the order asked for.
        runs: every run, policy by policy; an interrupted one has ``complete=False``.
        metrics: per policy; with several seeds the mean over them of every figure. ``complete`` is
            False where all there is comes from an interrupted run.
        per_seed: per policy and seed (as text): the figures of that one run.
        intervals: per policy and main figure the 95 % interval of the mean over the seeds.
        oracle_distance: per policy and oracle the ratios to it, where oracles were run.
        losses: policies whose mean completion time is worse than ``fcfs``'s, where that was run.
        settings: what the figures depend on: engine, pool, rate, cost, seeds and so on.
        command: the command line that made it.
        machine: what it ran on: ``platform``, ``python``, ``cpus``, ``memory_bytes``.
        created: ISO-8601 UTC.
    """

    workload: WorkloadFacts
    policies: list[str]
    runs: list[RunRecord] = field(default_factory=list)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    per_seed: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    oracle_distance: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the part that is the same whenever and wherever a simulated run is repeated."""
        return {
            "format": 1,
            "complete": self.complete,
            "workload": self.workload.to_json(),
            "settings": self.settings,
            "policies": {
                name: self.metrics[name] for name in self.policies if name in self.metrics
            },
            "per_seed": self.per_seed,
            "intervals": self.intervals,
            "oracle_distance": self.oracle_distance,
            "losses": self.losses,
        }
