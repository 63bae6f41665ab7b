"""What prefill and reload cost, from a few measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentrt.errors import ConfigError

__all__ = ["PrefillCurve", "PrefillPoint", "ReloadCurve", "ReloadPoint"]

PrefillPoint: TypeAlias = tuple[int, int, float]
"""A step: tokens computed, tokens cached before them, seconds."""
ReloadPoint: TypeAlias = tuple[int, float]
"""A transfer: tokens, seconds."""

LEAST = 1e-9
"""Seconds a token: a curve rises, whatever noise says."""


@dataclass(frozen=True, slots=True)
class PrefillCurve:
    """Seconds to prefill a context: of each step, each token, each pair of a token and one before.

    ``chunk`` is how many tokens a step computes.
    """

    step: float
    token: float
    pair: float
    chunk: int

    def __call__(self, tokens: int) -> float:
        """Return the seconds that computing ``tokens`` tokens of a new context takes."""
        pairs = tokens * (tokens + 1) / 2
        return -(-tokens // self.chunk) * self.step + self.token * tokens + self.pair * pairs

    @classmethod
    def of(cls, points: Sequence[PrefillPoint], chunk: int) -> PrefillCurve:
        """Return the curve through three points: a short and a long step, and the long one again
        behind cached tokens; of others only the extremes count.

        Raises:
            ConfigError: there are no such points.
        """
        fresh = sorted(point for point in points if point[1] == 0)
        deep = max((point for point in points if point[1] > 0), key=lambda p: p[1], default=None)
        if len(fresh) < 2 or deep is None or fresh[0][0] == fresh[-1][0]:
            raise ConfigError(
                f"{len(points)} measured steps make no prefill curve.",
                remedy="Measure a short and a long step, and the long one behind cached tokens.",
            )
        (few, _, short), (many, _, long) = fresh[0], fresh[-1]
        count, cached, late = deep
        pair = max(late - long * count / many, 0.0) / (count * cached)
        short, long = (
            seconds - pair * tokens * (tokens + 1) / 2
            for tokens, seconds in ((few, short), (many, long))
        )
        token = max((long - short) / (many - few), LEAST)
        return cls(max(short - token * few, 0.0), token, pair, chunk)


@dataclass(frozen=True, slots=True)
class ReloadCurve:
    """Seconds to bring KV from another tier: of each transfer and of each token."""

    transfer: float
    token: float

    def __call__(self, tokens: int) -> float:
        """Return the seconds that bringing ``tokens`` tokens takes."""
        return self.transfer + self.token * tokens if tokens else 0.0

    @classmethod
    def of(cls, points: Sequence[ReloadPoint]) -> ReloadCurve:
        """Return the line through the shortest and the longest transfer.

        Raises:
            ConfigError: there are no two of different length.
        """
        ordered = sorted(points)
        if len(ordered) < 2 or ordered[0][0] == ordered[-1][0]:
            raise ConfigError(
                f"{len(points)} measured transfers make no reload curve.",
                remedy="Measure a short and a long one.",
            )
        (few, short), (many, long) = ordered[0], ordered[-1]
        token = max((long - short) / (many - few), LEAST)
        return cls(max(short - token * few, 0.0), token)
