"""A plan as the schedule needs it: who follows whom, by which edge, under which policy. No state.

Everything here is computed once, so that no event makes the schedule look at the whole plan again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, StepPolicy

__all__ = ["Graph", "PlanLike"]


class PlanLike(Protocol):
    """What the schedule reads of a plan."""

    @property
    def guide(self) -> Guide:
        """The guide that was planned: its steps in file order, their policies."""

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, those out of ``start`` and into ``end`` included."""


class Graph:
    """The indexes of a plan. Edges go by name, steps by id; both keep the order of the file.

    Args:
        plan: an acyclic plan.
        times: expected seconds of each step, for the priorities; 1.0 where none is given.

    Raises:
        GuideError: two edges have one name, or an edge names a step that does not exist.
    """

    def __init__(self, plan: PlanLike, times: Mapping[str, float] | None = None) -> None:
        policies = {step.id: step.policy for step in plan.guide.steps}
        self.policies: dict[str, StepPolicy] = {START: StepPolicy(), **policies}
        # Last, also where a guide lists it itself: it is scanned after the steps that lead to it.
        self.policies[END] = self.policies.pop(END, StepPolicy())
        self.on_conclusion = plan.guide.on_conclusion
        self.source: dict[str, str] = {}
        self.target: dict[str, str] = {}
        outgoing: dict[str, list[str]] = {name: [] for name in self.policies}
        incoming: dict[str, list[str]] = {name: [] for name in self.policies}
        for edge in plan.edges:
            self._check(edge, plan.guide.path)
            self.source[edge.name], self.target[edge.name] = edge.source, edge.target
            outgoing[edge.source].append(edge.name)
            incoming[edge.target].append(edge.name)
        self.outgoing = {name: tuple(edges) for name, edges in outgoing.items()}
        self.incoming = {name: tuple(edges) for name, edges in incoming.items()}
        self.rank = {name: position for position, name in enumerate(self.policies)}
        self.remaining = self._remaining(times or {})

    def _check(self, edge: Edge, path: str) -> None:
        where = f"{path}:{edge.line}: " if path else ""
        if edge.name in self.source:
            raise GuideError(
                f"{where}Two edges are named {edge.name!r}.",
                remedy="Give each edge a name of its own, such as edge_Step1_Step2.",
            )
        for end in (edge.source, edge.target):
            if end not in self.policies:
                raise GuideError(
                    f"{where}Edge {edge.name!r} names {end!r}, which is not a step.",
                    remedy="Name an existing step, start or end.",
                )

    def _remaining(self, times: Mapping[str, float]) -> dict[str, float]:
        """Seconds of the longest way from each step, itself included, to where it can lead."""
        longest: dict[str, float] = {}
        unfinished = {name: len(edges) for name, edges in self.outgoing.items()}
        leaves = [name for name, count in unfinished.items() if count == 0]
        while leaves:
            name = leaves.pop()
            after = max((longest[self.target[edge]] for edge in self.outgoing[name]), default=0.0)
            own = 0.0 if name in (START, END) else times.get(name, 1.0)
            longest[name] = own + after
            for edge in self.incoming[name]:
                before = self.source[edge]
                unfinished[before] -= 1
                if unfinished[before] == 0:
                    leaves.append(before)
        return longest

    def priority(self, step: str) -> tuple[float, int]:
        """Sort key of a ready step: the one with most still to come first, then file order."""
        return (-self.remaining.get(step, 0.0), self.rank[step])

    def before(self, steps: Iterable[str]) -> set[str]:
        """All steps from which one of these can be reached, these included."""
        found = set(steps)
        todo = list(found)
        while todo:
            for edge in self.incoming[todo.pop()]:
                if self.source[edge] not in found:
                    found.add(self.source[edge])
                    todo.append(self.source[edge])
        return found
