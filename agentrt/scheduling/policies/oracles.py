"""Bounds that need the future: which KV an all-knowing policy would keep, and for how long.

``true-ttl``: pinned programs first, as ``fixed-ttl``, but a pin ends when its context is back.

``belady``: the same, and where room must be made, that KV goes whose context comes back last. With
a prefill cost that is linear in tokens, the recomputation that a page saves is the same for all, so
the greedy choice by cost is Belady's. It is optimal for a given order of requests and pages of one
size; since returns depend on service here, it is a yardstick and not a proof. Without the pins it
would not even be that: newcomers take the pool while a context is away, and all recompute.
"""

from __future__ import annotations

from typing import Any

from agentrt.errors import ConfigError
from agentrt.scheduling.fixed_ttl import pinned_first
from agentrt.scheduling.kv import CachedRun
from agentrt.scheduling.policy import (
    ContextView,
    KeepNothing,
    Policy,
    TurnView,
    program_score,
)
from agentrt.scheduling.surroundings import Foresight, Surroundings

__all__ = ["belady", "true_ttl"]

SLACK = 1e-3
"""Seconds that a pin outlasts its context's return, which must not meet its end."""
WHILE_UNKNOWN = 1e-3
"""Seconds of a pin that is looked at again as soon as the return is known."""


def _foresight(name: str, around: Surroundings) -> Foresight:
    if around.foresight is None:
        raise ConfigError(
            f"{name} knows what happens next, which only a simulation can tell.",
            remedy="Use it with --engine simulated, or choose another policy.",
        )
    return around.foresight


class _UntilReturn(KeepNothing):
    """Pins that last exactly as long as their context is away."""

    def __init__(self, foresight: Foresight) -> None:
        super().__init__(program_score)
        self._foresight = foresight

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return a moment: when the context is back is known once the turn's end was noted."""
        back = self._foresight.returns_at(turn.state.owner)
        return back - now + SLACK if now < back < float("inf") else WHILE_UNKNOWN

    def pin_expiring(self, context: ContextView, waited: float, now: float) -> float:
        """Go on until the context is back, now that it is known when that is."""
        back = self._foresight.returns_at(context.owner)
        return back - now + SLACK if now <= back < float("inf") else 0.0


class _FarthestReturn(_UntilReturn):
    """The same pins; eviction by the next return, asked anew each time."""

    rescore = True

    def score(self, run: CachedRun) -> Any:
        """Rank runs that come back later lower, and unowned ones lowest."""
        soonest = min(map(self._foresight.returns_at, run.owners), default=float("inf"))
        return (-soonest, run.last_used)


def belady(around: Surroundings) -> Policy:
    """Return ``belady``.

    Raises:
        ConfigError: nothing is known of the future.
    """
    foresight = _foresight("belady", around)
    return Policy(
        "belady",
        pinned_first,
        _FarthestReturn(foresight),
        yields=lambda context: foresight.returns_at(context.owner),
    )


def true_ttl(around: Surroundings) -> Policy:
    """Return ``true-ttl``.

    Raises:
        ConfigError: nothing is known of the future.
    """
    return Policy("true-ttl", pinned_first, _UntilReturn(_foresight("true-ttl", around)))
