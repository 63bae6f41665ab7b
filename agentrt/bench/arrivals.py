"""When programs arrive: drawn by seed, with a trace's burstiness, or as recorded."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from agentrt.bench.workload import Program
from agentrt.errors import ConfigError

__all__ = ["draw_arrivals"]

KINDS = "poisson, recorded, or mooncake:FILE"
TRACE = "mooncake:"


def draw_arrivals(
    programs: Sequence[Program],
    rate: float | None,
    seed: int,
    time_scale: float = 1.0,
    kind: str | None = None,
) -> list[tuple[float, Program]]:
    """Return ``(arrival in seconds, program)`` in order of arrival.

    ``poisson`` (with a ``rate`` the default): the programs are shuffled and arrive as a Poisson
    process of so many programs a second, both by ``seed``; the first arrives after one draw.
    ``mooncake:FILE``: shuffled too; the times between arrivals are a stretch of the trace's, from
    a place drawn by ``seed``, scaled to a mean of one over ``rate``. ``recorded``: each at its
    recorded time multiplied by ``time_scale``, and the seed changes nothing.

    Raises:
        ConfigError: no such kind, or the rate is missing or not above 0.
        WorkloadError: the trace cannot be read.
    """
    if kind == "recorded" or (kind is None and rate is None):
        return sorted(
            ((program.arrival * time_scale, program) for program in programs),
            key=lambda pair: pair[0],
        )
    if rate is None or not 0 < rate < math.inf:
        raise ConfigError(f"--rate is {rate}.", remedy="Give programs per second, above 0.")
    source = random.Random(seed)
    shuffled = list(programs)
    source.shuffle(shuffled)
    if kind is None or kind == "poisson":
        gaps = [source.expovariate(rate) for _ in shuffled]
    elif kind.startswith(TRACE):
        gaps = _stretch(Path(kind.removeprefix(TRACE)), len(shuffled), rate, source)
    else:
        raise ConfigError(f"--arrivals is {kind!r}.", remedy=f"Choose one of: {KINDS}.")
    now = 0.0
    drawn: list[tuple[float, Program]] = []
    for gap, program in zip(gaps, shuffled, strict=True):
        now += gap
        drawn.append((now, program))
    return drawn


def _stretch(path: Path, count: int, rate: float, source: random.Random) -> list[float]:
    """Return ``count`` times between arrivals of a trace, with a mean of one over ``rate``."""
    between = _trace_gaps(path)
    start = source.randrange(len(between))
    chosen = [between[(start + at) % len(between)] for at in range(count)]
    total = math.fsum(chosen)
    if not total > 0:
        raise ConfigError(
            f"{path}: {count} requests from number {start} on arrive at once.",
            remedy="Take another seed, or a longer part of the workload.",
        )
    return [gap * count / (rate * total) for gap in chosen]


@functools.lru_cache(maxsize=4)
def _trace_gaps(path: Path) -> tuple[float, ...]:
    from agentrt.bench.importers import import_workload

    times = sorted(row.arrival for row in import_workload("mooncake", path).programs)
    if len(times) < 2:
        raise ConfigError(f"{path} holds one request.", remedy="Give a trace of two or more.")
    return tuple(later - sooner for sooner, later in pairwise(times))
