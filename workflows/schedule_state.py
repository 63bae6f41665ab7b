"""The state of a run: what the fold of its events comes to. Plain data with counters, no time.

Nothing here depends on a clock or on the number of workers: two processes that have read the same
events hold equal states, whatever happened to them meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from agentrt.errors import InternalError
from agentrt.workflows.events import EdgeState, RunStatus, StepStatus
from agentrt.workflows.schedule_graph import Graph

__all__ = ["APPROVE", "Changes", "GateState", "Inputs", "RunState", "StepState", "WaitsFor"]

WaitsFor: TypeAlias = Literal["", "worker", "gate", "retry", "question"]
"""Why a step does not get on: no free worker, an approval, the pause before the next attempt, or
(while it runs) the answer to its question."""


APPROVE: Final = ("approve", "deny")
"""The answers of a gate that lets a step start, or start again."""


@dataclass(slots=True)
class Changes:
    """What followed from one event: by step, in order.

    ``started`` and ``stopped`` are attempts; ``ready``, ``gates``, ``retries`` and ``skipped`` are
    steps that now wait for a worker, for an approval, for the next attempt, or never will.
    """

    started: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Inputs:
    """How many incoming edges of a step are in each state."""

    pending: int = 0
    enabled: int = 0
    disabled: int = 0


@dataclass(slots=True)
class StepState:
    """One step. ``attempt`` is the number of the latest attempt, from 1; 0 before the first.

    ``failures`` counts attempts that failed, which is what the retry limit is about: an attempt
    that was lost with its process is not one of them. ``gate`` is the id of the gate it waits for.
    """

    status: StepStatus = "pending"
    attempt: int = 0
    failures: int = 0
    waits_for: WaitsFor = ""
    gate: str = ""
    approved: bool = False
    worker: str = ""
    error: str = ""
    reason: str = ""
    result: Any = None
    tokens: int = 0


@dataclass(slots=True)
class GateState:
    """A gate or question. ``answer`` is None while it is open; ``by`` person or default."""

    gate: str
    step: str
    question: str = ""
    options: tuple[str, ...] = ()
    default: str = ""
    expires: str | None = None
    answer: str | None = None
    by: str = ""

    @classmethod
    def read(cls, step: str, data: Mapping[str, Any]) -> GateState | None:
        """The gate that the data of ``gate_opened`` describes; None where it describes none."""
        gate, options, expires = data.get("gate"), data.get("options"), data.get("expires")
        if not isinstance(gate, str) or not gate or not isinstance(options or [], (list, tuple)):
            return None
        if expires is not None and not _is_time(expires):
            return None
        return cls(
            gate,
            step,
            question=str(data.get("question", "")),
            options=tuple(map(str, options or ())),
            default=str(data.get("default") or ""),
            expires=expires,
        )


@dataclass(slots=True)
class RunState:
    """Everything that the events of a run come to.

    ``conclusions`` are the edges by which ``end`` was reached, in order: there may be several.
    ``ignored`` counts events that came late, twice or out of turn and had no effect.
    """

    steps: dict[str, StepState]
    edges: dict[str, EdgeState]
    inputs: dict[str, Inputs]
    counts: Counter[str]
    gates: dict[str, GateState] = field(default_factory=dict)
    running: dict[str, None] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    conclusions: list[str] = field(default_factory=list)
    started: bool = False
    status: RunStatus = "running"
    reason: str = ""
    tokens: int = 0
    ignored: int = 0
    pending_edges: int = 0

    @classmethod
    def initial(cls, graph: Graph) -> RunState:
        """The state before the first event: everything pending."""
        return cls(
            steps={name: StepState() for name in graph.policies},
            edges=dict.fromkeys(graph.source, "pending"),
            inputs={name: Inputs(pending=len(edges)) for name, edges in graph.incoming.items()},
            counts=Counter(pending=len(graph.policies)),
            pending_edges=len(graph.source),
        )

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status != "running"

    @property
    def idle(self) -> bool:
        """Whether no step is under way and none is going to be without a further event."""
        return not self.running and not self.waiting

    def statuses(self) -> dict[str, StepStatus]:
        """The status of every step, ``start`` and ``end`` included, by id."""
        return {name: step.status for name, step in self.steps.items()}

    def failed_steps(self) -> list[str]:
        """The steps that failed or timed out for good, in file order."""
        if not self.counts["failed"] and not self.counts["timed_out"]:
            return []
        return [n for n, step in self.steps.items() if step.status in ("failed", "timed_out")]

    def open_gates(self) -> list[GateState]:
        """The gates and questions that nobody has answered yet, oldest first."""
        return [gate for gate in self.gates.values() if gate.answer is None]

    def move(self, step: str, status: StepStatus, waits_for: WaitsFor = "") -> StepState:
        """Give a step its new status and keep the counters and sets in line with it."""
        state = self.steps[step]
        self.counts[state.status] -= 1
        self.counts[status] += 1
        self.running.pop(step, None)
        self.waiting.pop(step, None)
        if status == "running":
            self.running[step] = None
        elif status == "waiting":
            self.waiting[step] = None
        state.status, state.waits_for, state.gate = status, waits_for, ""
        return state

    def set_edge(self, edge: str, target: str, state: EdgeState) -> bool:
        """Decide a pending edge; False, and no change, when it has been decided before."""
        if self.edges[edge] != "pending" or state == "pending":
            return False
        self.edges[edge] = state
        self.pending_edges -= 1
        inputs = self.inputs[target]
        inputs.pending -= 1
        if state == "enabled":
            inputs.enabled += 1
        else:
            inputs.disabled += 1
        return True

    def check_integrity(self, graph: Graph) -> None:
        """Count everything again.

        Raises:
            InternalError: a counter or set disagrees with what it counts.
        """
        counts = Counter(step.status for step in self.steps.values())
        _agree("steps by status", +self.counts, counts)
        for status, kept in (("running", self.running), ("waiting", self.waiting)):
            found = {name for name, step in self.steps.items() if step.status == status}
            _agree(f"{status} steps", set(kept), found)
        pending = sum(state == "pending" for state in self.edges.values())
        _agree("pending edges", self.pending_edges, pending)
        for step, edges in graph.incoming.items():
            seen = Counter(self.edges[edge] for edge in edges)
            recount = Inputs(seen["pending"], seen["enabled"], seen["disabled"])
            _agree(f"edges into {step}", self.inputs[step], recount)


def _is_time(text: object) -> bool:
    """Whether this is ISO-8601 with its offset from UTC."""
    if not isinstance(text, str):
        return False
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _agree(what: str, kept: object, counted: object) -> None:
    if kept != counted:
        raise InternalError(f"The schedule's {what}: kept {kept!r}, counted {counted!r}.")
