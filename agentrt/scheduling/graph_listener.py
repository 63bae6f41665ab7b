"""How declared graphs reach a policy's execution graphs: a listener to compose with."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.scheduling.graph import ExecutionGraphs
from agentrt.scheduling.graph_declared import Edge, Step
from agentrt.scheduling.policy import Listener
from agentrt.scheduling.views import TurnView

__all__ = ["DeclaredSteps"]


class DeclaredSteps(Listener):
    """Passes declarations on, and the steps that turns name as they are handed in."""

    def __init__(self, graphs: ExecutionGraphs) -> None:
        self._graphs = graphs

    def declared(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Declare a program's graph."""
        self._graphs.declare(program_id, steps, edges)

    def submitted(self, turn: TurnView, now: float) -> None:
        """A named step starts."""
        if turn.hints.step is not None:
            self._graphs.observe(turn.program_id, turn.hints.step)
