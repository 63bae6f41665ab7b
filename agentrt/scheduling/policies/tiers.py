"""Where the KV of a context that is away is cheapest: in the pool, on the host, or nowhere.

Per turn, from measured curves of prefill and reload: a prefix is copied to the host if loading it
will be cheaper than computing it, and loaded if that is cheaper than computing what is asked for.
It is brought back before the context's return is likely, if the pool has free room then.
"""

from __future__ import annotations

from agentrt.scheduling.policies.return_times import AwayContexts
from agentrt.scheduling.policy import ContextView, Prefetch, TurnView
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["CheapestPlace"]

EARLY, LATE = 0.25, 0.9
"""Quantiles of a gap: from when on its KV is to be back, and until when it is held there."""
LONGEST = 60.0
"""Seconds that it is held there at most."""


class CheapestPlace:
    """A :class:`~agentrt.scheduling.policy.Tiering` by costs.

    ``away`` forecasts returns: what is on the host is brought back before the early ones of them.
    None: it is loaded when it is asked for.
    """

    def __init__(self, around: Surroundings, away: AwayContexts | None = None) -> None:
        self._prefill = around.prefill_seconds
        self._reload = around.reload_seconds
        self._away = away

    def offload(self, turn: TurnView, now: float) -> bool:
        """Return whether loading the turn's KV would be cheaper than computing it."""
        return self.reload(turn.length)

    def reload(self, tokens: int) -> bool:
        """Return whether to load so many tokens rather than to prefill them."""
        return self._reload is not None and self._reload(tokens) < self._prefill(tokens)

    def prefetch(self, context: ContextView, now: float) -> Prefetch | None:
        """Return a wish for the time at which an early return would find its KV loaded."""
        if self._away is None or self._reload is None:
            return None
        forecast = self._away.watch.forecast(context.owner, now)
        if forecast is None:
            return None
        early, late = forecast.quantile(EARLY), forecast.quantile(LATE)
        lead = self._reload(context.length)
        return Prefetch(now + max(early - lead, 0.0), min(late - early + lead, LONGEST))
