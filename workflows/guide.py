"""What a guide is: steps, edges, parameters, queries, as plain data. Nothing here reads or runs.

Ids: a step is ``Step2`` or ``Step3.1``; the run begins in ``start`` and concludes in ``end``. An
edge is named ``edge_<source>_<target>`` unless the guide names it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "END",
    "START",
    "Edge",
    "Guide",
    "Join",
    "OnConclusion",
    "Parameter",
    "QueryUse",
    "Retry",
    "Step",
    "StepPolicy",
]

START = "start"
END = "end"

Join: TypeAlias = Literal["any", "all", "quorum"]
"""When a step with several incoming edges may start.

``any``: no incoming edge is pending and at least one is enabled (StepFly's rule, the default).
``all``: every incoming edge is enabled. ``quorum``: at least ``StepPolicy.quorum`` are enabled; it
does not wait for the others.
"""

OnConclusion: TypeAlias = Literal["cancel", "drain", "finish-join"]
"""What happens to steps under way when ``end`` is reached: they are cancelled; or they finish, and
nothing new starts; or whatever can still lead into a join that has begun to fill goes on to it."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input of the guide. ``type`` is one of string, integer, number, boolean, timestamp."""

    name: str
    description: str = ""
    type: str = "string"
    required: bool = True
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries of a failed attempt: waits ``initial * factor ** n`` seconds, at most ``longest``."""

    attempts: int = 3
    initial: float = 0.5
    factor: float = 2.0
    longest: float = 128.0


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """How a step is run. Times are seconds; ``memory`` bytes; ``cpu`` cores; tokens per attempt.

    ``idempotent`` says that running the step twice does no harm; where it is False a resumed run
    asks before repeating it. ``gate`` asks a person before the step starts.
    """

    join: Join = "any"
    quorum: int = 1
    timeout: float = 180.0
    retry: Retry = Retry()
    idempotent: bool = True
    gate: Literal["none", "approve"] = "none"
    gate_default: Literal["approve", "deny"] = "deny"
    gate_timeout: float | None = None
    tokens: int | None = None
    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None
    network: Literal["none", "host"] = "none"


@dataclass(frozen=True, slots=True)
class Edge:
    """A way from one step to another.

    ``predicate`` is an expression over the step's data that code can decide (see ``predicate.py``);
    ``condition`` is the English text, or empty for an unconditional edge. ``otherwise`` marks the
    edge that is taken when no sibling is.
    """

    name: str
    source: str
    target: str
    condition: str = ""
    predicate: str | None = None
    otherwise: bool = False
    line: int = 0

    @property
    def unconditional(self) -> bool:
        """Whether the edge is taken whenever its step succeeds."""
        return not self.condition and self.predicate is None and not self.otherwise


@dataclass(frozen=True, slots=True)
class QueryUse:
    """A query that a step runs: the template's name, and fixed arguments beside the parameters."""

    query: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    line: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One node. ``instructions`` is what the guide says; ``command`` a shell command, if any.

    ``for_each`` names an expression whose values the step is run for, one by one in one node.
    ``guide`` names another guide that the step runs as a whole. ``conclusion`` is the text of the
    terminator, if the step has one. ``reads`` are the steps whose results it may see beyond those
    with an edge to it. ``line`` is the first line of the step in its file, counted from 1.
    """

    id: str
    title: str
    instructions: str = ""
    queries: tuple[QueryUse, ...] = ()
    command: str | None = None
    for_each: str | None = None
    guide: str | None = None
    edges: tuple[Edge, ...] = ()
    conclusion: str | None = None
    reads: tuple[str, ...] = ()
    policy: StepPolicy = StepPolicy()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Guide:
    """A whole guide. ``text`` is its markdown as it was read; ``path`` where from, or empty.

    ``queries_file`` is the file with its query templates, relative to the guide's folder.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    parameters: tuple[Parameter, ...] = ()
    overview: str = ""
    text: str = ""
    path: str = ""
    queries_file: str | None = None
    on_conclusion: OnConclusion = "cancel"
    source_format: Literal["agentrt", "stepfly", "python"] = "agentrt"

    def step(self, step_id: str) -> Step:
        """Return the step with this id.

        Raises:
            KeyError: there is none.
        """
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)
