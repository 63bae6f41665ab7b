"""More programs than were recorded: drawn from a workload by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from agentrt.bench.workload import Program
from agentrt.errors import ConfigError

__all__ = ["origin", "resample"]

MARK = "::"


def resample(programs: Sequence[Program], count: int, seed: int) -> list[Program]:
    """Return ``count`` programs drawn with replacement, each under a name of its own.

    Raises:
        ConfigError: ``count`` is not above 0.
    """
    if count < 1:
        raise ConfigError(f"--programs is {count}.", remedy="Give --programs a number above 0.")
    drawn = random.Random(f"{seed}/programs").choices(programs, k=count)
    return [
        replace(program, program=f"{program.program}{MARK}{number}")
        for number, program in enumerate(drawn)
    ]


def origin(name: str) -> str:
    """Return the name of the recorded program that a drawn one repeats."""
    return name.partition(MARK)[0]
