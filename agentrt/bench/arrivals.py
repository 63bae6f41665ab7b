"""When programs arrive: drawn by seed, or as recorded."""

from __future__ import annotations

import random
from collections.abc import Sequence

from agentrt.bench.workload import Program
from agentrt.errors import ConfigError

__all__ = ["draw_arrivals"]


def draw_arrivals(
    programs: Sequence[Program], rate: float | None, seed: int, time_scale: float = 1.0
) -> list[tuple[float, Program]]:
    """Return ``(arrival in seconds, program)`` in order of arrival.

    With a ``rate`` (programs a second) the programs are shuffled and arrive as a Poisson process,
    both by ``seed``; the first one arrives after one draw. Without a rate each arrives at its
    recorded time multiplied by ``time_scale``, and the seed changes nothing.

    Raises:
        ConfigError: the rate is not above 0.
    """
    if rate is None:
        return sorted(
            ((program.arrival * time_scale, program) for program in programs),
            key=lambda pair: pair[0],
        )
    if not 0 < rate < float("inf"):
        raise ConfigError(f"--rate is {rate}.", remedy="Give programs per second, above 0.")
    source = random.Random(seed)
    shuffled = list(programs)
    source.shuffle(shuffled)
    now = 0.0
    drawn: list[tuple[float, Program]] = []
    for program in shuffled:
        now += source.expovariate(rate)
        drawn.append((now, program))
    return drawn
