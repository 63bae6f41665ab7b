"""Single events and states as notes of a report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentrt.workflows.data_handle import Handle, Row
from agentrt.workflows.events import Event
from agentrt.workflows.guide import Edge
from agentrt.workflows.report_model import CommandNote, ModelNote, NestedNote
from agentrt.workflows.schedule_state import StepState

__all__ = [
    "attempt_of",
    "command_note",
    "conclusion_of",
    "edge_words",
    "ended",
    "failure_of",
    "findings_of",
    "handle_of",
    "implied",
    "model_note",
    "nested_note",
    "reason_of",
    "series_of",
]


def attempt_of(event: Event, default: int) -> int:
    """Return the number of the attempt an event belongs to."""
    return int(event.data.get("attempt", default))


def ended(event: Event) -> str:
    """Return how an attempt ended, by the event that ended it."""
    words = {"step_cancelled": "cancelled", "step_retried": "failed", "lease_lost": "lost"}
    return words.get(event.kind) or str(event.data.get("status", "failed"))


def edge_words(edge: Edge) -> str:
    """Return what decides an edge, in the guide's words."""
    if edge.unconditional:
        return "always"
    if edge.otherwise:
        return "otherwise"
    return edge.condition or edge.predicate or ""


def implied(step: StepState) -> str:
    """Return why edges are closed that nobody decided: their step did not succeed."""
    return f"its step was {step.status.replace('_', ' ')}" if step.status != "succeeded" else ""


def reason_of(step: StepState) -> str:
    """Return why a step is where it is, where that needs saying."""
    if step.status == "waiting" and step.waits_for:
        return f"waits for {step.waits_for}"
    return step.reason or (step.error if step.status in ("failed", "timed_out") else "")


def findings_of(step: StepState) -> str:
    """Return what a step found, as text."""
    if isinstance(step.result, Mapping):
        return str(step.result.get("findings", ""))
    return "" if step.result is None else str(step.result)


def conclusion_of(step: StepState) -> str:
    """Return the text of the terminator a step reached, or nothing."""
    found = step.result.get("conclusion") if isinstance(step.result, Mapping) else None
    return str(found) if found else ""


def failure_of(data: Mapping[str, Any]) -> str:
    """Return how a recorded call failed, or nothing."""
    failed = data.get("failed")
    if not isinstance(failed, Mapping):
        return ""
    return f"{failed.get('type', 'Error')}: {failed.get('message', '')}"


def handle_of(data: Mapping[str, Any]) -> Handle | None:
    """Return the handle of a recorded query, if it has an answer."""
    outcome = data.get("outcome")
    if not isinstance(outcome, Mapping) or "handle" not in outcome:
        return None
    return Handle.from_json(outcome["handle"])


def model_note(data: Mapping[str, Any]) -> ModelNote:
    """Return the note of a recorded model call."""
    request, outcome = data.get("request", {}), data.get("outcome") or {}
    return ModelNote(
        asks=str(request.get("asks", "")),
        model=str(request.get("model", "")),
        digest=str(request.get("messages", "")),
        answer=str(outcome.get("text", "")).strip(),
        tokens=int(outcome.get("tokens") or 0),
        cached_tokens=int(outcome.get("cached_tokens") or 0),
        failure=failure_of(data),
        attempt=int(data.get("attempt", 1)),
    )


def command_note(data: Mapping[str, Any]) -> CommandNote | None:
    """Return the note of a recorded command; None for another tool."""
    request, outcome = data.get("request", {}), data.get("outcome") or {}
    if "command" not in request:
        return None
    # The environment that the request also holds may carry secrets: it is not shown.
    return CommandNote(
        command=str(request["command"]),
        exit_code=outcome.get("exit_code"),
        output="\n".join(filter(None, (outcome.get("stdout"), outcome.get("stderr")))),
        duration=outcome.get("duration"),
        peak_memory=outcome.get("peak_memory"),
        failure=failure_of(data),
        attempt=int(data.get("attempt", 1)),
    )


def nested_note(data: Mapping[str, Any]) -> NestedNote | None:
    """Return the note of a guide run within a step; None for another tool."""
    request, outcome = data.get("request", {}), data.get("outcome") or {}
    if "guide" not in request:
        return None
    return NestedNote(
        guide=str(request["guide"]),
        run_id=str(outcome.get("run_id") or request.get("run", "")),
        status=str(outcome.get("status", "")),
        conclusion=str(outcome.get("conclusion") or ""),
        findings={str(key): str(text) for key, text in (outcome.get("findings") or {}).items()},
        failure=failure_of(data),
    )


def series_of(handle: Handle, rows: Sequence[Row]) -> tuple[float, ...]:
    """Return the values of a table that is one measurement over time, else nothing.

    It is one where its first column of times only ever grows, all rows are at hand, and they are
    at least five: several series in one table would repeat their times.
    """
    kinds = [column.type for column in handle.columns]
    if "timestamp" not in kinds or len(rows) != handle.rows or len(rows) < 5:
        return ()
    measured = [
        place
        for place, column in enumerate(handle.columns)
        if column.type in ("integer", "number") and column.name != "line"
    ]
    times = [str(row[kinds.index("timestamp")]) for row in rows]
    if len(measured) != 1 or any(early >= late for early, late in itertools.pairwise(times)):
        return ()
    values = [row[measured[0]] for row in rows]
    return tuple(float(v) for v in values if isinstance(v, int | float) and math.isfinite(v))
