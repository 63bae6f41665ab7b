"""How a run is scheduled, what the schedule finds out by itself, and what a run has come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentrt.errors import ConfigError
from agentrt.workflows.events import Command, RunStatus
from agentrt.workflows.guide import END, OnConclusion
from agentrt.workflows.schedule_state import RunState

__all__ = ["Ending", "Fact", "Outbox", "ScheduleConfig", "ScheduleStatistics", "outcome", "seconds"]


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How a run is scheduled. Times are seconds.

    Args:
        workers: steps under way at once, at least 1.
        compat: StepFly's semantics, driven by ticks (see ``schedule_compat``).
        budget_tokens: tokens of all attempts together after which the run is stopped.
        wall_seconds: time after which the run is stopped; time between a crash and the resume
            does not count.
        seed: of the jitter of retries.
        times: expected seconds per step, which decide who goes first when workers are short.
        grace: how long a cancelled step may take to stop before it is written off.
        lease: how long after a ``lease_renewed`` its worker counts as lost. A worker that has
            never renewed its lease is not watched.
        ask_seconds: how long a person has to say whether a step that must not run twice may be
            repeated; then it is not. None waits for ever.
        poll: seconds between the ticks of compatibility mode.
    """

    workers: int = 5
    compat: bool = False
    budget_tokens: int | None = None
    wall_seconds: float | None = None
    seed: int = 0
    times: Mapping[str, float] = field(default_factory=dict)
    grace: float = 30.0
    lease: float = 60.0
    ask_seconds: float | None = 3600.0
    poll: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(
                f"A run cannot have {self.workers} workers.", remedy="Give it at least 1."
            )


@dataclass(frozen=True, slots=True)
class Fact:
    """Something the schedule found out by itself, to be appended to the log and handed back."""

    kind: str
    step: str | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScheduleStatistics:
    """How far a run is. ``ignored`` counts late, duplicate and out-of-turn events."""

    steps: Mapping[str, int]
    running: int
    starting: int
    ready: int
    timers: int
    tokens: int
    ignored: int


@dataclass(slots=True)
class Outbox:
    """What is to be done and to be logged since somebody last looked."""

    commands: list[Command] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


@dataclass(slots=True)
class Ending:
    """The run is being wound up: which steps may still start, and what it will end as."""

    status: RunStatus
    reason: str
    how: OnConclusion
    allowed: set[str] = field(default_factory=set)

    @property
    def result(self) -> tuple[RunStatus, str]:
        """What the run ends as, and why."""
        return self.status, self.reason


def outcome(state: RunState) -> tuple[RunStatus, str]:
    """What a run in which nothing more can happen has come to."""
    if state.steps[END].status == "succeeded":
        return "succeeded", f"end was reached by {', '.join(state.conclusions)}"
    if failed := state.failed_steps():
        return "failed", f"end cannot be reached: {', '.join(failed)} failed"
    return "inconclusive", "no enabled edge leads to end"


def seconds(time: str) -> float:
    """ISO-8601 UTC as seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()
