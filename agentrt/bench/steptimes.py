"""What the scheduler itself takes a step, in real seconds: its own work, not the engine's."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

from agentrt.bench.metrics import mean, percentile
from agentrt.scheduling import Scheduler
from agentrt.scheduling.plan import Event, StepPlan, StepResult, TurnRequest

__all__ = ["StepTimes", "TimedScheduler"]


class StepTimes:
    """Seconds of every step: planning and committing it, and taking in the turns before it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._steps = array("d")
        self._open = 0.0

    def add(self, since: float) -> None:
        """Add the time since ``since`` to the step under way."""
        self._open += self.clock() - since

    def end_step(self) -> None:
        """Close the step under way."""
        self._steps.append(self._open)
        self._open = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the number of steps, and mean, P99 and maximum of their seconds."""
        return {
            "steps": len(self._steps),
            "mean": mean(self._steps) or 0.0,
            "p99": percentile(self._steps, 0.99) or 0.0,
            "max": max(self._steps, default=0.0),
        }


class TimedScheduler(Scheduler):
    """A scheduler whose own work is measured; it decides what the plain one would."""

    def __init__(self, times: StepTimes, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._times = times

    def submit(self, request: TurnRequest, now: float, opened: str | None = None) -> None:
        """Queue a turn."""
        since = self._times.clock()
        try:
            super().submit(request, now, opened)
        finally:
            self._times.add(since)

    def plan(self, now: float, horizon: int = 1) -> StepPlan:
        """Decide the next step."""
        since = self._times.clock()
        plan = super().plan(now, horizon)
        self._times.add(since)
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Account for a step."""
        since = self._times.clock()
        events = super().commit(plan, result, now)
        self._times.add(since)
        self._times.end_step()
        return events
