"""Contexts that are away, and what happens to their tools meanwhile: when will each be back?

One :class:`GapWatch` holds every context between the end of a turn and its next one. What the
sandbox reports corrects the forecast: after an exit or a kill the return is imminent and follows
its own learned distribution; while the process is blocked, throttled or frozen its clock runs
slower, which stretches what is left. Gaps are learned on the process's clock, so that a freeze
does not teach that a tool is slow. Forecasts are scored when the context returns.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from agentrt.scheduling.gaps import GapDistribution, GapKey, GapModel, GapPhase

__all__ = ["PACE", "GapForecast", "GapScores", "GapWatch", "ToolState"]

ToolState: TypeAlias = Literal[
    "started", "ended", "killed", "blocked", "throttled", "frozen", "resumed"
]

PACE: Final = MappingProxyType(
    {"started": 1.0, "resumed": 1.0, "throttled": 0.5, "blocked": 0.25, "frozen": 0.01}
)
"""How fast a process gets on in each state, unless its report says better. Never 0: a controller
bounds a freeze, and a forecast stays finite."""

AFTER: Final[MappingProxyType[str, GapPhase]] = MappingProxyType(
    {"ended": "exit", "killed": "kill"}
)
SCORED: Final = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class GapForecast:
    """A distribution, asked at one moment: ``waited`` on the process's clock, at ``pace``."""

    distribution: GapDistribution
    waited: float
    pace: float = 1.0

    def within(self, tau: float) -> float:
        """Return the probability of a return in the next ``tau`` seconds."""
        return self.distribution.within(tau * self.pace, self.waited)

    def remaining(self) -> float:
        """Return the expected seconds until the return."""
        return self.distribution.remaining(self.waited) / self.pace

    def quantile(self, p: float) -> float:
        """Return the least seconds after which a return has the probability ``p``, in [0, 1)."""
        return self.distribution.quantile(p, self.waited) / self.pace

    def hold(self, tau: float) -> float:
        """Return the expected seconds that a pin of at most ``tau`` seconds is held."""
        return self.distribution.hold(tau * self.pace, self.waited) / self.pace

    def best_ttl(self, benefit: float) -> float:
        """Return the pin that pays best, in seconds: see ``GapDistribution.best_ttl``."""
        return self.distribution.best_ttl(benefit * self.pace, self.waited) / self.pace


@dataclass(slots=True)
class GapScores:
    """How forecasts made at the end of a turn came out.

    ``below[p]`` counts the gaps that were not longer than the quantile ``p`` said; a calibrated
    forecast has ``below[p] / scored`` near ``p``.
    """

    scored: int = 0
    below: dict[float, int] = field(default_factory=lambda: dict.fromkeys(SCORED, 0))

    def coverage(self, p: float) -> float:
        """Return the share of gaps within quantile ``p``; 0 when none was scored."""
        return self.below[p] / self.scored if self.scored else 0.0


@dataclass(slots=True)
class _Wait:
    """One context away. ``began`` and ``clock`` belong to the present phase of the gap."""

    key: GapKey
    since: float
    began: float
    seen: float
    phase: GapPhase = "turn"
    pace: float = 1.0
    clock: float = 0.0
    worked: float = 0.0
    promised: tuple[float, ...] = ()

    def advance(self, now: float) -> None:
        """Run the process's clock up to ``now``; time that goes back is taken as no time."""
        passed = max(0.0, now - self.seen) * self.pace
        self.clock += passed
        self.worked += passed
        self.seen = max(self.seen, now)


class GapWatch:
    """Waits by context, each ended by ``returned`` or ``drop``. Unknown contexts are ignored."""

    def __init__(self, model: GapModel | None = None) -> None:
        self.model = model if model is not None else GapModel()
        self.scores = GapScores()
        self._waits: dict[Hashable, _Wait] = {}

    def __len__(self) -> int:
        """Return how many contexts are away."""
        return len(self._waits)

    def left(self, context: Hashable, key: GapKey, now: float) -> GapForecast:
        """A turn of ``context`` ended; return when it may be back."""
        distribution = self.model.distribution(key)
        promised = tuple(distribution.quantile(p) for p in SCORED)
        self._waits[context] = _Wait(key, now, now, now, promised=promised)
        return GapForecast(distribution, 0.0)

    def report(
        self, context: Hashable, state: ToolState, now: float, pace: float | None = None
    ) -> None:
        """Its tool's process changed state; ``pace`` in (0, 1] says how fast it still gets on."""
        wait = self._waits.get(context)
        if wait is None:
            return
        wait.advance(now)
        after = AFTER.get(state)
        if after is not None:
            wait.phase, wait.began, wait.clock, wait.pace = after, now, 0.0, 1.0
            return
        if wait.phase != "turn":  # another process runs: the gap goes on as a whole
            wait.phase, wait.began, wait.clock = "turn", wait.since, wait.worked
        wait.pace = min(1.0, max(PACE["frozen"], PACE[state] if pace is None else pace))

    def forecast(self, context: Hashable, now: float) -> GapForecast | None:
        """Return when a context that is away may be back, given all that was reported."""
        wait = self._waits.get(context)
        if wait is None:
            return None
        wait.advance(now)
        return GapForecast(self.model.distribution(wait.key, wait.phase), wait.clock, wait.pace)

    def returned(self, context: Hashable, now: float) -> float | None:
        """The context is back: learn and score; return the gap in seconds, None if unknown."""
        wait = self._waits.pop(context, None)
        if wait is None:
            return None
        wait.advance(now)
        gap = max(0.0, now - wait.since)
        self.scores.scored += 1
        for p, promised in zip(SCORED, wait.promised, strict=True):
            self.scores.below[p] += gap <= promised
        self.model.add(wait.key, wait.worked)
        if wait.phase != "turn":
            self.model.add(wait.key, max(0.0, now - wait.began), wait.phase)
        return gap

    def drop(self, context: Hashable) -> None:
        """The context will not be back: nothing is learned."""
        self._waits.pop(context, None)
