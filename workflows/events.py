"""What happens in a run, as data: the events of its log, and the commands its schedule gives.

A run is the fold of its events. Events are appended before their consequences take place, so a
process that dies at any of them can be resumed from the log alone. All payloads are JSON values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "AskPerson",
    "CancelStep",
    "Command",
    "EdgeState",
    "EndRun",
    "Event",
    "RunStatus",
    "StartStep",
    "StepStatus",
    "Wake",
]

EdgeState: TypeAlias = Literal["pending", "enabled", "disabled"]
StepStatus: TypeAlias = Literal[
    "pending", "waiting", "running", "succeeded", "failed", "skipped", "cancelled", "timed_out"
]
RunStatus: TypeAlias = Literal[
    "running", "succeeded", "failed", "cancelled", "timed_out", "inconclusive"
]


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log. ``time`` is ISO-8601 UTC; ``index`` counts from 0 without gaps.

    ``kind`` and what ``data`` then holds:

    - ``run_started``: ``guide``, ``fingerprint``, ``parameters``, ``workers``, ``budget``,
      ``seed``
    - ``step_started``: ``attempt`` (from 1), ``worker``
    - ``step_finished``: ``attempt``, ``status`` (succeeded, failed, timed_out), ``result``,
      ``edges`` (name to enabled or disabled, exactly the step's out-edges), ``tokens``, ``error``
    - ``step_retried``: ``attempt`` that failed, ``wait`` in seconds, ``error``
    - ``step_skipped``, ``step_cancelled``: ``reason``
    - ``edge_decided``: ``edge``, ``state``, ``by`` (code, model, person, rule), ``evidence``
    - ``gate_opened``: ``gate`` (a stable id), ``question``, ``options``, ``default``, ``expires``
    - ``gate_answered``: ``gate``, ``answer``, ``by`` (person, default)
    - ``model_called``, ``tool_called``, ``query_run``: request digest and the recorded outcome
    - ``lease_renewed``, ``lease_lost``: ``worker``
    - ``run_resumed``, ``run_forked``: ``from_run``, ``from_step``
    - ``run_ended``: ``status``, ``reason``
    """

    index: int
    time: str
    kind: str
    step: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartStep:
    """Start an attempt of a step."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Stop a step that is under way, killing what it runs."""

    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class AskPerson:
    """Open a gate and wait for its answer."""

    step: str
    gate: str
    question: str
    options: tuple[str, ...]
    default: str
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class Wake:
    """Call the schedule again at this time (the schedule's clock, seconds)."""

    at: float


@dataclass(frozen=True, slots=True)
class EndRun:
    """The run is over."""

    status: RunStatus
    reason: str


Command: TypeAlias = StartStep | CancelStep | AskPerson | Wake | EndRun
