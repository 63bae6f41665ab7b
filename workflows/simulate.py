"""A run in virtual time: the real schedule, steps that take as long as they are said to.

Nothing is executed and nobody waits. It tells how long a run takes with so many workers, which is
how parallel and serial runs of a guide are compared without measuring a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrt.errors import InternalError
from agentrt.workflows.events import (
    AskPerson,
    CancelStep,
    Command,
    EndRun,
    Event,
    RunStatus,
    StartStep,
)
from agentrt.workflows.guide import END
from agentrt.workflows.plan import Plan
from agentrt.workflows.schedule import Schedule, ScheduleConfig

__all__ = ["Simulated", "edges_on_path", "path_times", "simulate"]

MOST_EVENTS = 100_000


@dataclass(frozen=True, slots=True)
class Simulated:
    """How a simulated run went: its length in virtual seconds, and its steps as they started."""

    seconds: float
    order: tuple[str, ...]
    status: RunStatus


def edges_on_path(plan: Plan, path: Collection[str]) -> dict[str, str]:
    """Return the state of every edge of a run that takes exactly the steps of ``path``.

    An edge to ``end`` is taken where it is unconditional, or where nothing else leads on.
    """
    states: dict[str, str] = {}
    for name, node in plan.nodes.items():
        on = [edge for edge in node.outgoing if edge.target in path]
        for edge in node.outgoing:
            last = edge.target == END and (edge.unconditional or not on) and name in path
            taken = edge.unconditional or edge in on or last
            states[edge.name] = "enabled" if taken else "disabled"
    return states


def path_times(path: Collection[str], times: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each step of a path; a step without a time takes one second."""
    return {step: times.get(step, 1.0) for step in path}


def simulate(
    plan: Plan,
    times: Mapping[str, float],
    edges: Mapping[str, str],
    *,
    workers: int,
    answers: Mapping[str, str] | None = None,
) -> Simulated:
    """Run a plan in virtual time.

    Args:
        times: seconds per step; a step that is not named takes none.
        edges: the state that each edge is decided to.
        answers: answers to gates by step; approve where none is given.

    Raises:
        InternalError: the run does not end.
    """
    return _Simulation(plan, times, edges, workers, answers or {}).run()


@dataclass(slots=True)
class _Simulation:
    plan: Plan
    times: Mapping[str, float]
    edges: Mapping[str, str]
    workers: int
    answers: Mapping[str, str]
    now: float = 0.0
    index: int = 0
    made: int = 0
    order: list[str] = field(default_factory=list)
    ended: EndRun | None = None
    queue: list[tuple[float, int, str, str | None, dict[str, Any]]] = field(default_factory=list)

    def run(self) -> Simulated:
        known = {step: self.times.get(step, 0.0) for step in self.plan.steps}
        schedule = Schedule(self.plan, ScheduleConfig(workers=self.workers, times=known))
        self._later(0.0, "run_started", None, {"workers": self.workers})
        while self.queue and self.ended is None:
            self.now, _, kind, step, data = heapq.heappop(self.queue)
            self._do(schedule.handle(self._event(kind, step, data), self.now))
            for fact in schedule.take_facts():
                self._later(0.0, fact.kind, fact.step, fact.data)
        if self.ended is None:
            raise InternalError(f"The simulated run stopped at {self.now:g} s without an end.")
        return Simulated(self.now, tuple(self.order), self.ended.status)

    def _event(self, kind: str, step: str | None, data: dict[str, Any]) -> Event:
        self.index += 1
        if self.index > MOST_EVENTS:
            raise InternalError(f"The simulated run has not ended after {MOST_EVENTS} events.")
        return Event(self.index - 1, "2026-01-01T00:00:00Z", kind, step, data)

    def _later(self, after: float, kind: str, step: str | None, data: dict[str, Any]) -> None:
        # The count keeps events of one moment in the order in which they were made.
        self.made += 1
        heapq.heappush(self.queue, (self.now + after, self.made, kind, step, data))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case StartStep(step, attempt):
                    self._start(step, attempt)
                case AskPerson(step=step, gate=gate, question=question, options=options):
                    answer = {"gate": gate, "answer": self.answers.get(step, "approve")}
                    asked = {"gate": gate, "question": question, "options": list(options)}
                    self._later(0.0, "gate_opened", step, asked)
                    self._later(0.0, "gate_answered", step, answer)
                case CancelStep(step, reason):
                    self._later(0.0, "step_cancelled", step, {"reason": reason})
                case EndRun():
                    self.ended = command
                case _:
                    pass  # a Wake: nothing here runs late

    def _start(self, step: str, attempt: int) -> None:
        self.order.append(step)
        self._later(0.0, "step_started", step, {"attempt": attempt, "worker": "virtual"})
        edges = {edge.name: self.edges[edge.name] for edge in self.plan.outgoing(step)}
        done = {"attempt": attempt, "status": "succeeded", "edges": edges, "result": {}}
        self._later(self.times.get(step, 0.0), "step_finished", step, done)
