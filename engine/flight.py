"""Steps between launch and commit: one, or two where the second can be launched early.

A device then has its next step before the host has read the last one's tokens. Which steps may be
launched early, backend and scheduler say; what a turn's end, seen one step late, means for its
pages is the scheduler's matter (``agentrt/scheduling/following.py``).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

from agentrt.engine.backend import EngineSample, StepHandle, TurnBackend
from agentrt.engine.faults import Fault, FaultWatch
from agentrt.scheduling.plan import SchedulerProtocol, StepPlan, StepResult

__all__ = ["Flight", "Landed"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Landed:
    """A step that is over. Where it had a ``fault``, its ``result`` says who has failed."""

    plan: StepPlan
    result: StepResult
    fault: Fault | None
    launched: float


@dataclass(frozen=True, slots=True)
class _Step:
    """``handle`` is None if launching failed, with ``fault``."""

    plan: StepPlan
    handle: StepHandle | None
    fault: Fault | None
    launched: float


class Flight:
    """The steps that are under way, oldest first.

    Args:
        scheduler: asked for the step after one of decodes.
        backend: what computes.
        faults: judges results.
        clock: seconds.
        early: launch steps early where it can be done.
    """

    def __init__(
        self,
        scheduler: SchedulerProtocol,
        backend: TurnBackend,
        faults: FaultWatch,
        clock: Callable[[], float],
        *,
        early: bool,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._faults = faults
        self._clock = clock
        self._early = early
        self._steps: deque[_Step] = deque()
        self._closed = -math.inf
        self.overlapped = 0
        """Steps that were launched early, since the start."""

    def __bool__(self) -> bool:
        return bool(self._steps)

    def launch(self, plan: StepPlan) -> None:
        """Launch a step; if that raises, it lands with the fault."""
        launched = self._clock()
        try:
            self._steps.append(_Step(plan, self._backend.launch(plan), None, launched))
        except Exception as error:
            _logger.exception("A step of %d turns could not be launched", len(plan.slices))
            self._steps.append(_Step(plan, None, Fault.of_exception(error), launched))

    def follow(self) -> None:
        """Launch the step after the one that is under way, if that is known before its tokens."""
        if not self._early or len(self._steps) != 1:
            return
        step = self._steps[0]
        if step.fault is not None or not self._backend.follows(step.plan):
            return
        plan = self._scheduler.follow(step.plan, self._clock())
        if plan is not None:
            self.launch(plan)
            self.overlapped += 1

    def land(self, over: Container[str]) -> Landed:
        """Wait for the oldest step; if it raised or its result is rubbish, its turns have failed.

        Turns that were ``over`` before it are in it for nothing: how they fared tells no fault.
        """
        step = self._steps.popleft()
        result, fault = self._result(step, over)
        if fault is not None and fault.kind != "logits":  # with those, turns fail one by one
            failed = EngineSample((), "failed", error=fault.text)
            result = StepResult({piece.turn_id: failed for piece in step.plan.slices})
        return Landed(step.plan, result, fault, step.launched)

    def close(self, landed: Landed) -> float:
        """Return the seconds that a step took, its commit included; those of no other step."""
        now = self._clock()
        seconds, self._closed = now - max(landed.launched, self._closed), now
        return seconds

    def _result(self, step: _Step, over: Container[str]) -> tuple[StepResult, Fault | None]:
        if step.handle is None:
            return StepResult(), step.fault
        try:
            result = self._backend.wait(step.handle)
            plan = step.plan
            if any(piece.turn_id in over for piece in plan.slices):
                plan, result = _without(over, plan, result)
            return result, self._faults.of_result(plan, result, self._clock())
        except Exception as error:
            _logger.exception("A step of %d turns failed", len(step.plan.slices))
            return StepResult(), Fault.of_exception(error)


def _without(
    over: Container[str], plan: StepPlan, result: StepResult
) -> tuple[StepPlan, StepResult]:
    """Leave out turns that were over; what is no result at all is left for the judge."""
    plan = StepPlan(tuple(piece for piece in plan.slices if piece.turn_id not in over))
    if isinstance(result, StepResult) and isinstance(result.samples, Mapping):
        live = {turn_id: each for turn_id, each in result.samples.items() if turn_id not in over}
        result = replace(result, samples=live)
    return plan, result
