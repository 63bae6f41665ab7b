"""What a log comes to, without anything that drove the run."""

from __future__ import annotations

from collections.abc import Iterable

from agentrt.workflows.events import Event
from agentrt.workflows.schedule_graph import Graph, PlanLike
from agentrt.workflows.schedule_machine import Machine
from agentrt.workflows.schedule_state import RunState

__all__ = ["fold"]


def fold(plan: PlanLike, events: Iterable[Event], *, compat: bool = False) -> RunState:
    """The state that these events come to, whatever schedule they were made by.

    Args:
        compat: the run was made in compatibility mode; ``compat`` in the data of ``run_started``
            says so, too.
    """
    events = list(events)
    compat = compat or (bool(events) and events[0].data.get("compat") is True)
    machine = Machine(Graph(plan), compat=compat)
    for event in events:
        machine.apply(event)
    return machine.state
