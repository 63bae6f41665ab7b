"""SAGA's time to live of a tool's KV: a log-normal per tool type, shortened under memory pressure.

Source: arXiv 2605.00528, section on tool-aware TTL; priors and rates from its public code::

    ttl = min(P95(H) * (1 - 0.5 * m), 300 s)      m = clamp((used - 0.7) / (0.9 - 0.7), 0, 1)

and nothing is kept where more than 0.9 of the pool is used. ``H`` is log-normal per tool *type*;
its logarithm's mean and variance are exponential averages (0.1 a sample), from priors for code
execution, files, the web and databases with ``sigma = ln(P95 / P50) / 1.6449``. What is learned is
the time until the context is back, not the tool's own, which left a known port with TTLs of
milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["ToolTimes", "ToolType", "pressure", "tool_ttl", "tool_type"]

ToolType: TypeAlias = Literal["code", "file", "web", "database"]

LONGEST = 300.0
LOW_USE, HIGH_USE = 0.7, 0.9
SMOOTHING = 0.1
Z95 = 1.6449
SHORTEST_GAP = 1e-3

PRIORS: dict[ToolType, tuple[float, float]] = {
    "code": (0.180, 2.400),
    "file": (0.045, 0.320),
    "web": (0.850, 4.500),
    "database": (0.120, 0.890),
}
"""P50 and P95 in seconds."""

WORDS: tuple[tuple[ToolType, tuple[str, ...]], ...] = (
    ("database", ("sql", "database", "query", "kusto")),
    ("web", ("web", "fetch", "http", "url", "browse", "search_web")),
    ("file", ("read", "edit", "write", "glob", "grep", "file", "ls", "view")),
)
"""Words in a tool's name that tell its type; any other tool executes code."""


def tool_type(tool: str) -> ToolType:
    """Return a tool's type, by its name."""
    name = tool.partition(":")[0].lower()
    for kind, words in WORDS:
        if any(word in name for word in words):
            return kind
    return "code"


def pressure(used: float) -> float:
    """Return memory pressure from 0 to 1, of the share of the pool that is used."""
    return min(max((used - LOW_USE) / (HIGH_USE - LOW_USE), 0.0), 1.0)


def tool_ttl(p95: float, used: float) -> float:
    """Return the seconds to keep KV for a tool whose 95th percentile is ``p95`` seconds."""
    if used > HIGH_USE:
        return 0.0
    return min(p95 * (1.0 - 0.5 * pressure(used)), LONGEST)


@dataclass(slots=True)
class _LogNormal:
    mean: float
    variance: float

    def add(self, seconds: float) -> None:
        difference = math.log(max(seconds, SHORTEST_GAP)) - self.mean
        self.mean += SMOOTHING * difference
        self.variance = (1.0 - SMOOTHING) * (self.variance + SMOOTHING * difference**2)

    def p95(self) -> float:
        return math.exp(self.mean + Z95 * math.sqrt(self.variance))


def _prior(p50: float, p95: float) -> _LogNormal:
    return _LogNormal(math.log(p50), (math.log(p95 / p50) / Z95) ** 2)


class ToolTimes:
    """How long contexts are away, by the type of their tool."""

    def __init__(self) -> None:
        self._types = {kind: _prior(*percentiles) for kind, percentiles in PRIORS.items()}

    def add(self, tool: str, seconds: float) -> None:
        """Learn that a context was back ``seconds`` after it called a tool."""
        self._types[tool_type(tool)].add(seconds)

    def p95(self, tool: str) -> float:
        """Return the 95th percentile of a tool's type, in seconds."""
        return self._types[tool_type(tool)].p95()
