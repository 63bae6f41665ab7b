"""What a report says, as data: every field comes from an event of the log or from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrt.workflows.data_handle import Handle, Row
from agentrt.workflows.guide import Edge
from agentrt.workflows.plan import Plan

__all__ = [
    "AttemptNote",
    "CommandNote",
    "DecisionNote",
    "GateNote",
    "ModelNote",
    "NestedNote",
    "QueryNote",
    "Report",
    "StepNote",
]


@dataclass(frozen=True, slots=True)
class QueryNote:
    """A query that was asked. ``at`` is seconds after the run began; ``rows`` a preview.

    ``series`` are the values of its one measured column over time, or empty where it has none.
    """

    anchor: str
    name: str
    source: str
    kind: str
    statement: str
    parameters: Mapping[str, Any]
    window: str
    handle: Handle | None
    rows: tuple[Row, ...]
    failure: str
    attempt: int
    at: float
    series: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionNote:
    """What became of an edge, by whom (code, model, person, rule) and on what evidence."""

    edge: Edge
    words: str
    state: str
    by: str
    evidence: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CommandNote:
    """A command that ran in a sandbox; ``duration`` in seconds, ``peak_memory`` in bytes."""

    command: str
    exit_code: int | None
    output: str
    duration: float | None
    peak_memory: int | None
    failure: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NestedNote:
    """Another guide that was run as part of a step."""

    guide: str
    run_id: str
    status: str
    conclusion: str
    findings: Mapping[str, str]
    failure: str


@dataclass(frozen=True, slots=True)
class ModelNote:
    """A model call: ``asks`` is text or choice; ``digest`` is that of its messages."""

    asks: str
    model: str
    digest: str
    answer: str
    tokens: int
    cached_tokens: int
    failure: str
    attempt: int


@dataclass(frozen=True, slots=True)
class GateNote:
    """A question to a person. ``answer`` is empty while it is open; ``by`` person or default."""

    gate: str
    question: str
    options: tuple[str, ...]
    default: str
    answer: str
    by: str
    opened: float
    answered: float | None


@dataclass(frozen=True, slots=True)
class AttemptNote:
    """One attempt: when it began and ended, in seconds after the run began, and how.

    ``wait`` is how many seconds the next attempt was put off, None where none followed.
    """

    number: int
    start: float
    end: float
    status: str
    error: str = ""
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class StepNote:
    """Everything known of one step. ``reason`` says why it was skipped, cancelled or failed.

    ``by_model`` says whether ``findings`` are a model's prose; else they were put together from
    the step's data. ``incoming`` are the decisions of the edges into it.
    """

    id: str
    title: str
    status: str
    reason: str = ""
    findings: str = ""
    by_model: bool = False
    conclusion: str = ""
    instructions: str = ""
    attempts: tuple[AttemptNote, ...] = ()
    queries: tuple[QueryNote, ...] = ()
    decisions: tuple[DecisionNote, ...] = ()
    incoming: tuple[DecisionNote, ...] = ()
    commands: tuple[CommandNote, ...] = ()
    nested: tuple[NestedNote, ...] = ()
    models: tuple[ModelNote, ...] = ()
    gates: tuple[GateNote, ...] = ()
    warnings: tuple[str, ...] = ()
    tokens: int = 0

    @property
    def ran(self) -> bool:
        """Whether an attempt of it was ever started."""
        return bool(self.attempts)

    @property
    def seconds(self) -> float:
        """How long it was under way, all attempts together."""
        return sum(attempt.end - attempt.start for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. Times are seconds after ``started``, which is ISO-8601 UTC.

    ``path`` names the steps that succeeded, in the order in which they did; ``states`` holds the
    status of every node and the state of every edge, as the renderers take it. ``summary`` is
    prose of a model, or empty.
    """

    plan: Plan
    run_id: str
    status: str
    reason: str
    conclusion: str
    started: str
    seconds: float
    parameters: Mapping[str, str]
    settings: Mapping[str, str]
    path: tuple[str, ...]
    steps: tuple[StepNote, ...]
    states: Mapping[str, str]
    tokens: int
    cached_tokens: int
    events: int
    resumed: int = 0
    forked_from: str = ""
    summary: str = ""
    decided_by: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The guide's title."""
        return self.plan.guide.title

    @property
    def ran(self) -> tuple[StepNote, ...]:
        """The steps of which an attempt was started."""
        return tuple(step for step in self.steps if step.ran)

    @property
    def not_run(self) -> tuple[StepNote, ...]:
        """The steps that never started."""
        return tuple(step for step in self.steps if not step.ran)

    @property
    def queries(self) -> tuple[QueryNote, ...]:
        """Every query of every step."""
        return tuple(query for step in self.steps for query in step.queries)

    def headline(self) -> str:
        """Return the run's outcome in one sentence."""
        if self.conclusion:
            return self.conclusion
        words = {
            "running": "The run has not ended.",
            "succeeded": "The guide was worked through to its end.",
            "inconclusive": "The guide came to no conclusion; all findings are below.",
        }
        return words.get(self.status, f"The run ended {self.status.replace('_', ' ')}.")
