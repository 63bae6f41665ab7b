"""Intervals and tests for a handful of runs, without assuming a distribution."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

__all__ = ["Interval", "bootstrap", "permutation_p"]

Interval: TypeAlias = tuple[float, float]

RESAMPLES = 5000
MOST_SPLITS = 200_000
"""Up to so many ways to split the values, all are looked at: 10 against 10 are 184,756."""
SEED = 7


def bootstrap(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Return the percentile interval of the mean over seeded resamples; None below two values."""
    if len(values) < 2:
        return None
    chance = random.Random(SEED)
    means = sorted(
        statistics.fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    tail = (1 - level) / 2
    low = means[math.floor(tail * RESAMPLES)]
    return low, means[min(RESAMPLES - 1, math.ceil((1 - tail) * RESAMPLES) - 1)]


def permutation_p(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return how often a random split has means as far apart as these two; two-sided.

    Exact up to ``MOST_SPLITS`` splits, else over as many seeded random ones with the add-one
    correction. None where a side is empty.
    """
    if not left or not right:
        return None
    pool = [*left, *right]
    size, whole = len(left), math.fsum(pool)
    seen = _distance(math.fsum(left), size, whole, len(pool)) * (1 - 1e-9)
    if math.comb(len(pool), size) <= MOST_SPLITS:
        splits = [math.fsum(part) for part in combinations(pool, size)]
        far = sum(_distance(part, size, whole, len(pool)) >= seen for part in splits)
        return far / len(splits)
    chance = random.Random(SEED)
    drawn = 20_000
    far = sum(
        _distance(math.fsum(chance.sample(pool, size)), size, whole, len(pool)) >= seen
        for _ in range(drawn)
    )
    return (far + 1) / (drawn + 1)


def _distance(part: float, size: int, whole: float, count: int) -> float:
    return abs(part / size - (whole - part) / (count - size))
