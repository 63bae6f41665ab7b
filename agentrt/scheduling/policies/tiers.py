"""Where the KV of a context that is away is cheapest: in the pool, on the host, or nowhere.

Per turn, from measured curves of prefill and reload: a prefix is copied to the host if loading it
will be cheaper than computing it, and loaded if that is cheaper than computing what is asked for.
"""

from __future__ import annotations

from agentrt.scheduling.policy import TurnView
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["CheapestPlace"]


class CheapestPlace:
    """A :class:`~agentrt.scheduling.policy.Tiering` by costs."""

    def __init__(self, around: Surroundings) -> None:
        self._prefill = around.prefill_seconds
        self._reload = around.reload_seconds

    def offload(self, turn: TurnView, now: float) -> bool:
        """Return whether loading the turn's KV would be cheaper than computing it."""
        return self.reload(turn.length)

    def reload(self, tokens: int) -> bool:
        """Return whether to load so many tokens rather than to prefill them."""
        return self._reload is not None and self._reload(tokens) < self._prefill(tokens)
