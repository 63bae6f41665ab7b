"""Fixed TTL: every turn's KV is pinned for the same time; pinned programs first, program order.

The strong simple baseline: pins hold against ordinary turns and are broken only as a last resort.
"""

from __future__ import annotations

from typing import Any

from agentrt.errors import ConfigError
from agentrt.scheduling.policy import KeepNothing, Policy, TurnView, program_score
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["FixedTTL", "fixed_ttl", "pinned_first"]


class FixedTTL(KeepNothing):
    """Retention that pins every turn for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(program_score)
        self._seconds = seconds

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return the fixed time to live."""
        return self._seconds


def pinned_first(turn: TurnView) -> tuple[Any, ...]:
    """Order preempted turns, then those whose KV is pinned, then by program and turn arrival."""
    return (
        turn.preemptions == 0,
        not turn.pinned,
        turn.program_arrival,
        turn.submitted,
        turn.sequence,
    )


def fixed_ttl(argument: str | None, around: Surroundings) -> Policy:
    """Return the policy for ``fixed-ttl=SECONDS``.

    Raises:
        ConfigError: the seconds are missing, negative or not a number.
    """
    try:
        seconds = float(argument if argument is not None else "nan")
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise ConfigError(
            f"fixed-ttl needs its seconds, not {argument!r}.", remedy="Write it as fixed-ttl=30."
        )
    return Policy(f"fixed-ttl={seconds:g}", pinned_first, FixedTTL(seconds))
