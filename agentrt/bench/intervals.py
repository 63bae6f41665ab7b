"""What several seeds say together: intervals of the means, distances to oracles, losing cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentrt.bench.metrics import mean
from agentrt.bench.policies import ORACLES
from agentrt.bench.results import Metrics

__all__ = ["MAIN_FIGURES", "interval", "intervals", "losses", "oracle_distance"]

MAIN_FIGURES = (
    "jct_mean",
    "jct_p90",
    "jct_p99",
    "slowdown_mean",
    "slowdown_p90",
    "ttft_first_p99",
    "ttft_return_p99",
    "longest_wait",
    "prefill_ratio",
    "programs_per_hour",
)

STUDENT_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5 % point of Student's t by degrees of freedom, from 1 on."""

NORMAL_95 = 1.960


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by Student's t; None for fewer than two values."""
    centre = mean(values)
    if centre is None or len(values) < 2:
        return None
    freedom = len(values) - 1
    variance = math.fsum((value - centre) ** 2 for value in values) / freedom
    point = STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else NORMAL_95
    half = point * math.sqrt(variance / len(values))
    return centre - half, centre + half


def intervals(per_seed: Mapping[str, Mapping[str, Metrics]]) -> dict[str, dict[str, list[float]]]:
    """Return ``[low, high]`` of each main figure by policy; none with a single seed."""
    return {
        policy: {
            name: list(found)
            for name in MAIN_FIGURES
            if (found := interval(_known(runs, name))) is not None
        }
        for policy, runs in per_seed.items()
    }


def _known(runs: Mapping[str, Metrics], name: str) -> list[float]:
    values = (figures.get(name) for figures in runs.values())
    return [value for value in values if value is not None]


def oracle_distance(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, dict[str, float]]]:
    """Return by policy and oracle the ratios of mean completion time and of prefilled tokens.

    Above 1 the policy is worse than the oracle.
    """
    oracles = [name for name in ORACLES if name in metrics]
    return {
        policy: {oracle: _ratios(figures, metrics[oracle]) for oracle in oracles}
        for policy, figures in metrics.items()
        if oracles
    }


def _ratios(mine: Metrics, theirs: Metrics) -> dict[str, float]:
    pairs = {name: (mine.get(name), theirs.get(name)) for name in ("jct_mean", "prefilled_tokens")}
    return {name: one / other for name, (one, other) in pairs.items() if one and other}


def losses(
    per_seed: Mapping[str, Mapping[str, Metrics]], baseline: str = "fcfs", tolerance: float = 0.01
) -> dict[str, dict[str, Any]]:
    """Return the policies whose mean completion time is more than ``tolerance`` above the baseline.

    ``ratio`` compares the means; ``seeds_worse`` counts the seeds in which it is so.
    """
    base = per_seed.get(baseline, {})
    lost: dict[str, dict[str, Any]] = {}
    for policy, runs in per_seed.items():
        pairs = [
            (runs[seed]["jct_mean"], base[seed]["jct_mean"])
            for seed in runs
            if seed in base and runs[seed]["jct_mean"] and base[seed]["jct_mean"]
        ]
        if policy == baseline or not pairs:
            continue
        ratio = math.fsum(one for one, _ in pairs) / math.fsum(other for _, other in pairs)
        if ratio > 1 + tolerance:
            worse = sum(one > other * (1 + tolerance) for one, other in pairs)
            lost[policy] = {"ratio": ratio, "seeds_worse": worse, "seeds": len(pairs)}
    return lost
