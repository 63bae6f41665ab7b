"""When a step has gone wrong, and how often the engine may start anew. Pure: no clock, no torch.

A *fault* is a failure of what computes, not of one turn: the step raised, its result does not fit
its plan, or no turn of it got usable logits. The engine then fails the step's turns, forgets all
KV, has its backend rebuilt and goes on; but only so often in a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.engine.backend import EngineSample
from agentrt.errors import EngineFault, InternalError
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

__all__ = ["Fault", "FaultKind", "FaultWatch", "RestartLimits", "misfit"]

FaultKind: TypeAlias = Literal["step", "memory", "result", "logits", "restart"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong. ``text`` is a sentence without its full stop."""

    kind: FaultKind
    text: str

    @classmethod
    def of_exception(cls, error: BaseException) -> Fault:
        """Return the fault of a step that raised."""
        # torch.OutOfMemoryError is known by its name: nothing here imports torch.
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        said = f"{type(error).__name__}: {error}"
        return cls("memory" if memory else "step", f"The step failed: {said}")


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """How often an engine may start anew.

    Args:
        restarts: at most so many within ``window``; the next fault stops the engine.
        window: seconds.
        bad_turns: so many turns without usable logits within ``window`` are a fault, too, although
            others of their steps were well: cached state that they share may be at fault.
    """

    restarts: int = 3
    window: float = 60.0
    bad_turns: int = 3


def misfit(plan: StepPlan, result: object) -> str | None:
    """Say how a result does not fit its plan; None if it does."""
    if not isinstance(result, StepResult) or not isinstance(result.samples, Mapping):
        return f"the backend returned {type(result).__name__} for a step"
    if result.abandoned:
        return "the step was given up, and has samples" if result.samples else None
    planned = {piece.turn_id: piece for piece in plan.slices}
    for turn_id in result.samples:
        if turn_id not in planned:
            return f"there is a sample of turn {turn_id}, which was not in the step"
    for piece in plan.slices:
        wrong = _misfit(piece, result.samples.get(piece.turn_id))
        if wrong is not None:
            return f"turn {piece.turn_id} {wrong}"
    return None


def _own(sample: Sample) -> bool:
    """Say whether a turn failed by what it asked for, not by what computes."""
    return isinstance(sample, EngineSample) and sample.own


def _misfit(piece: SeqSlice, sample: object) -> str | None:
    if sample is None:
        return "was to be sampled and was not" if piece.sample else None
    if not isinstance(sample, Sample):
        return f"has {type(sample).__name__} as its sample"
    if sample.finish == "failed":
        return None
    if not piece.sample:
        return "was sampled before its newest token"
    if len(sample.tokens) == 0:
        return "has a sample without tokens"
    if not all(isinstance(token, int) and token >= 0 for token in sample.tokens):
        return f"has a sample that holds no token ids: {list(sample.tokens)[:3]}"
    return None


class FaultWatch:
    """Remembers bad turns and restarts of the last while. Times are the caller's clock."""

    def __init__(self, limits: RestartLimits | None = None) -> None:
        self.limits = limits or RestartLimits()
        self._bad: deque[float] = deque()
        self._restarts: deque[float] = deque()

    def of_result(self, plan: StepPlan, result: StepResult, now: float) -> Fault | None:
        """Return the fault that a step's result shows, if it shows one."""
        wrong = misfit(plan, result)
        if wrong is not None:
            return Fault("result", f"The step gave a wrong result: {wrong}")
        blamed = [each for each in result.samples.values() if not _own(each)]
        bad = sum(sample.finish == "failed" for sample in blamed)
        if not bad:
            return None
        if bad == len(blamed):
            return Fault("logits", "No turn of the step got usable logits")
        self._bad.extend([now] * bad)
        _forget(self._bad, now - self.limits.window)
        if len(self._bad) >= self.limits.bad_turns:
            count = len(self._bad)
            return Fault("logits", f"{count} turns got no usable logits within a short time")
        return None

    def restart(self, now: float) -> bool:
        """Take note that the engine is to start anew; False if it has done so too often."""
        _forget(self._restarts, now - self.limits.window)
        if len(self._restarts) >= self.limits.restarts:
            return False
        self._restarts.append(now)
        self._bad.clear()
        return True

    def given_up(self, fault: Fault) -> EngineFault:
        """Return the error that stops an engine after one fault too many."""
        limits = self.limits
        return EngineFault(
            f"{fault.text}; the engine had started anew {limits.restarts} times within "
            f"{limits.window:g} s.",
            remedy="See its log for the first fault, and start it again.",
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if more restarts are remembered than are allowed."""
        if len(self._restarts) > self.limits.restarts:
            raise InternalError(f"{len(self._restarts)} restarts within {self.limits.window} s.")


def _forget(times: deque[float], before: float) -> None:
    while times and times[0] <= before:
        times.popleft()
