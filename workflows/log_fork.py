"""The events with which a forked run begins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentrt.errors import InvalidRequest
from agentrt.workflows.events import Event

__all__ = ["Fork", "forked_events"]


@dataclass(frozen=True, slots=True)
class Fork:
    """Which run is forked at which step, and how the step ends in the fork."""

    run_id: str
    step: str
    result: Any
    edges: Mapping[str, str] | None = None


def forked_events(events: Sequence[Event], fork: Fork, now: str) -> list[Event]:
    """The prefix up to the end of the step, the note of the fork, and the step's new end.

    Raises:
        InvalidRequest: the step has not finished, or failed without ``edges`` being given.
    """
    ends = [e for e in events if e.kind == "step_finished" and e.step == fork.step]
    if not ends:
        raise InvalidRequest(
            f"{fork.step} has not finished in run {fork.run_id!r}, so it has no result to change.",
            remedy="Fork from a step that has finished, or resume the run.",
        )
    last = max(event.data.get("attempt", 1) for event in ends)
    # The first result of an attempt counts: what came after it was late or twice.
    end = next(event for event in ends if event.data.get("attempt", 1) == last)
    edges = fork.edges if fork.edges is not None else end.data.get("edges")
    if end.data.get("status") != "succeeded" and fork.edges is None:
        raise InvalidRequest(
            f"{fork.step} failed in run {fork.run_id!r}, so it has decided no edges.",
            remedy="Say which of its edges are enabled and which are disabled.",
        )
    prefix = [event for event in events if event.index < end.index]
    note = {"from_run": fork.run_id, "from_step": fork.step}
    data = {**end.data, "status": "succeeded", "result": fork.result, "error": None}
    data["edges"] = dict(edges or {})
    tail = [
        Event(0, now, "run_forked", None, note),
        Event(0, now, "step_finished", fork.step, data),
    ]
    return [replace(event, index=index) for index, event in enumerate([*prefix, *tail])]
