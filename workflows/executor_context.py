"""What an attempt of a step is given and gives back, and how its calls to the outside are recorded.

An executor reaches models, queries and tools only through :class:`Calls`. A live run performs the
call and appends its outcome to the log; a replay hands out the recorded outcome instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from agentrt.errors import AgentRTError
from agentrt.workflows.decide import Decision
from agentrt.workflows.guide import Edge, Step
from agentrt.workflows.models import ModelFailure
from agentrt.workflows.person import Question

__all__ = [
    "CallKind",
    "Calls",
    "Executor",
    "RecordedFailure",
    "ResultTooLarge",
    "StepContext",
    "StepFailure",
    "StepOutcome",
    "check_result",
    "digest",
    "failure_json",
    "raise_recorded",
]

CallKind: TypeAlias = Literal["model_called", "tool_called", "query_run"]
Live: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
LARGEST_RESULT = 128 << 10
"""Bytes of JSON that a step's result may take in the log; larger data belongs behind a handle."""


class StepFailure(AgentRTError, RuntimeError):
    """A step could not do its work: its command failed, a nested guide failed, its input is bad."""


class ResultTooLarge(StepFailure):
    """A step's result is not small JSON."""


class RecordedFailure(AgentRTError, RuntimeError):
    """A failure that a log recorded, raised again in a replay."""


class Calls(Protocol):
    """The outside world of one attempt."""

    async def call(self, kind: CallKind, request: Mapping[str, Any], live: Live) -> dict[str, Any]:
        """Return the outcome of a call as JSON values; its failure is recorded and raised.

        Raises:
            AgentRTError: what ``live`` raised.
        """

    async def ask(self, question: Question) -> tuple[str, str]:
        """Return an answer and who gave it (person or default); the wait is bounded."""

    async def decided(self, decision: Decision) -> None:
        """Record a decision."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What one attempt may see.

    ``results`` are those of the steps it directly depends on or reads, in topological order;
    ``visible`` those of all steps before it, whose tables its conditions may name.
    """

    run_id: str
    attempt: int
    parameters: Mapping[str, str]
    results: Mapping[str, Mapping[str, Any]]
    visible: Mapping[str, Mapping[str, Any]]
    calls: Calls


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """How an attempt ended by itself: its result, and each out-edge's state."""

    result: dict[str, Any]
    edges: dict[str, str]
    tokens: int = 0
    cached_tokens: int = 0
    warnings: tuple[str, ...] = field(default=())


class Executor(Protocol):
    """Runs attempts of steps. ``name`` is part of a run's fingerprint."""

    @property
    def name(self) -> str:
        """What decides how steps are run: models, tools."""

    async def run(self, step: Step, edges: Sequence[Edge], context: StepContext) -> StepOutcome:
        """Run one attempt; cancelling it ends all that it started.

        Raises:
            AgentRTError: the attempt failed; the message is kept in the log.
        """


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result as the JSON values that the log will give back.

    Raises:
        ResultTooLarge: it is too large, or no JSON.
    """
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResultTooLarge(
            f"The step's result is not JSON: {error}.",
            remedy="Return texts, numbers, lists and mappings with text keys.",
        ) from error
    if len(text) > LARGEST_RESULT:
        raise ResultTooLarge(
            f"The step's result takes {len(text)} bytes of at most {LARGEST_RESULT}.",
            remedy="Put the data behind a handle, and return the handle.",
        )
    value: dict[str, Any] = json.loads(text)
    return value


def failure_json(error: AgentRTError) -> dict[str, Any]:
    """Return a failure as it is recorded."""
    kind = {"kind": error.kind} if isinstance(error, ModelFailure) else {}
    name = type(error).__name__
    return {"type": name, "message": error.message, "remedy": error.remedy, **kind}


def raise_recorded(failure: Mapping[str, Any]) -> None:
    """Raise a recorded failure again.

    Raises:
        ModelFailure: the model had failed.
        RecordedFailure: anything else had.
    """
    message, remedy = str(failure.get("message", "")), str(failure.get("remedy", ""))
    if failure.get("type") == "ModelFailure":
        raise ModelFailure(failure.get("kind", "unexpected"), message, remedy=remedy)
    raise RecordedFailure(message, remedy=remedy)
