"""Retention by learned return times: a pin lasts as long as its context is likely to be away.

Gaps are learned by tool, command kind, agent and program (``gaps.py``) and asked given the time
already waited. A pin first lasts to the 99th percentile of its gap; when that is over and others
wait, it goes on only while it pays (Eq. 2 of Continuum, arXiv 2511.02230, given the wait so far):
the benefit is what recomputing costs and what returning turns without KV have had to queue. What
the sandbox reports moves the forecast, and with it the pin.

With a host tier a lost prefix costs its reload, tens of times less: pins then only bridge gaps that
are shorter than that.
"""

from __future__ import annotations

from agentrt.scheduling.gap_waits import GapForecast, GapWatch
from agentrt.scheduling.gaps import GapKey
from agentrt.scheduling.plan import ToolEvent
from agentrt.scheduling.policies.residency import Residency
from agentrt.scheduling.policy import (
    ContextView,
    KeepNothing,
    Listener,
    ProgramView,
    TurnView,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["AwayContexts", "ReturnTimes"]

LIKELY = 0.99
SHORTEST, LONGEST = 5.0, 300.0
"""Seconds that a pin lasts at least and at most, whatever is forecast or hinted."""
HINT_SLACK = 1.5
RECHECK = 5.0
QUEUE_DECAY = 0.9


class AwayContexts(Listener):
    """Feeds a :class:`GapWatch`: who comes back when, and what tools do meanwhile."""

    def __init__(self, *, heed_tools: bool = True) -> None:
        self.watch = GapWatch()
        self._heed_tools = heed_tools

    def submitted(self, turn: TurnView, now: float) -> None:
        """Learn the gap of a context that is back."""
        self.watch.returned(turn.state.owner, now)

    def tool_event(self, context: ContextView, event: ToolEvent, now: float) -> None:
        """Move the forecast."""
        if self._heed_tools:
            self.watch.report(context.owner, event.kind, now)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Forget a program."""
        for context in program.contexts.values():
            self.watch.drop(context.owner)
        self.watch.model.forget(program.program_id)

    def leave(self, turn: TurnView, now: float) -> GapForecast:
        """A turn ended: forecast its context's return."""
        key = GapKey.of(turn.tool, turn.hints.agent, turn.program_id)
        return self.watch.left(turn.state.owner, key, now)


class ReturnTimes(KeepNothing):
    """Retention; learns through ``AwayContexts``, which must be among the policy's listeners.

    ``fixed`` seconds instead of what is learned: then pins neither go on nor follow tools.
    """

    def __init__(
        self,
        away: AwayContexts,
        residency: Residency,
        around: Surroundings,
        *,
        fixed: float | None = None,
    ) -> None:
        super().__init__(program_score)
        self._fixed = fixed
        self._away = away
        self._residency = residency
        self._around = around
        self._queueing = 0.0

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return how long the context is likely to be away; 0 for a guest while others wait."""
        forecast = self._away.leave(turn, now)
        reload = self._around.reload_seconds
        if reload is not None:
            return forecast.best_ttl(reload(turn.length))
        guest = self._residency.is_guest(turn)
        self._residency.leave(turn)
        if guest and self._residency.others_wait():
            return 0.0
        if self._fixed is not None:
            return self._fixed
        return self._bounded(max(forecast.quantile(LIKELY), self._hinted(turn)))

    def _follows_nothing(self) -> bool:
        return self._fixed is not None or self._around.reload_seconds is not None

    def _hinted(self, turn: TurnView) -> float:
        hints = turn.hints
        return max(HINT_SLACK * (hints.gap_seconds or 0.0), hints.keep_seconds or 0.0)

    @staticmethod
    def _bounded(seconds: float) -> float:
        return min(max(seconds, SHORTEST), LONGEST)

    def pin_expiring(self, context: ContextView, waited: float, now: float) -> float:
        """Go on while nobody else wants the pages, or while it pays."""
        forecast = self._away.watch.forecast(context.owner, now)
        if forecast is None or waited >= LONGEST or self._follows_nothing():
            return 0.0
        if not self._residency.others_wait():
            return RECHECK
        benefit = self._around.prefill_seconds(context.length) + self._queueing
        return min(forecast.best_ttl(benefit), LONGEST - waited)

    def tool_event(self, context: ContextView, event: ToolEvent, now: float) -> float | None:
        """Move the pin's end with the forecast; never to sooner than a moment from now."""
        forecast = self._away.watch.forecast(context.owner, now)
        if forecast is None or self._follows_nothing() or not context.pinned:
            return None
        return self._bounded(forecast.quantile(LIKELY))

    def admitted(self, queue_seconds: float, evicted: bool) -> None:
        """Learn what a return without KV had to queue."""
        if evicted:
            self._queueing = QUEUE_DECAY * self._queueing + (1 - QUEUE_DECAY) * queue_seconds
