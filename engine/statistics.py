"""The engine's figures, as a snapshot that anyone may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.engine.tiers.base import TierStatistics
from agentrt.scheduling.plan import SchedulerStatistics

__all__ = ["EngineState", "EngineStatistics"]

EngineState: TypeAlias = Literal["running", "restarting", "closing", "closed", "broken", "unloaded"]
"""``unloaded``: the model is not in device memory; a turn brings it back."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Figures as of the last step. Counters are since the start; times are the clock's seconds."""

    state: EngineState
    scheduler: SchedulerStatistics
    turns: int = 0
    """Turns taken and not ended: waiting or running."""
    steps: int = 0
    overlapped_steps: int = 0
    """Steps that were launched before the tokens of the one before them were read."""
    abandoned_steps: int = 0
    """Steps of much prefill that were given up for a turn that had come meanwhile."""
    step_seconds: float = 0.0
    """All steps: run and commit. One that was launched early begins where the last one ends."""
    last_step_seconds: float = 0.0
    last_step_tokens: int = 0
    failed_steps: int = 0
    """Steps in which the backend raised, or that gave no usable result at all."""
    callback_errors: int = 0
    restarts: int = 0
    """Times that the engine has started anew after a fault."""
    fault: str | None = None
    """What the last fault was; also why a broken engine has stopped."""
    tier: TierStatistics | None = None
    """Copies to and from host memory, where there is such a tier."""
