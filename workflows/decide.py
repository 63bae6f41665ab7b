"""Edge decisions: total over a step's out-edges, each with who decided and on what evidence.

An edge is decided by a rule where the guide leaves no choice, by code where its predicate can be
computed, else by a model that can say nothing but enabled or disabled, else by a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.errors import AgentRTError
from agentrt.workflows.events import EdgeState
from agentrt.workflows.guide import Edge
from agentrt.workflows.models import Choice, ModelFailure

__all__ = [
    "DECISIONS",
    "Decided",
    "Decision",
    "DecisionFailure",
    "Undecided",
    "by_code",
    "check_total",
    "decide_edges",
    "settle_otherwise",
]

DECISIONS: tuple[str, str] = ("enabled", "disabled")
By: TypeAlias = Literal["rule", "code", "model", "person"]


class DecisionFailure(AgentRTError, RuntimeError):
    """An edge could not be decided, or was decided to something that does not exist."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of an edge: ``enabled`` or ``disabled``, by whom, and a line of evidence."""

    edge: str
    state: EdgeState
    by: By
    evidence: str
    tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why code could not decide an edge."""

    edge: Edge
    why: str


@dataclass(frozen=True, slots=True)
class Decided:
    """The decisions so far, by edge name."""

    decisions: tuple[Decision, ...]

    @property
    def edges(self) -> dict[str, str]:
        """Name to state."""
        return {decision.edge: decision.state for decision in self.decisions}

    @property
    def tokens(self) -> int:
        """What the decisions cost."""
        return sum(decision.tokens for decision in self.decisions)

    @property
    def cached_tokens(self) -> int:
        """How many of them were not computed again."""
        return sum(decision.cached_tokens for decision in self.decisions)


AskModel: TypeAlias = Callable[[Edge], Awaitable[Choice]]
AskPerson: TypeAlias = Callable[[Edge, str], Awaitable[tuple[str, str]]]
"""Given the edge and why it is asked; returns the answer and who gave it (person, default)."""
Evaluate: TypeAlias = Callable[[str, Mapping[str, Any]], bool]
"""Evaluates a predicate's text; raises an ``AgentRTError`` when it cannot be computed."""


def by_code(edge: Edge, data: Mapping[str, Any], evaluate: Evaluate) -> Decision | Undecided:
    """Decide an edge that needs nobody's judgement; ``otherwise`` is left to its siblings."""
    if edge.unconditional:
        return Decision(edge.name, "enabled", "rule", "unconditional")
    if edge.predicate is None:
        return Undecided(edge, "its condition is prose")
    try:
        value = evaluate(edge.predicate, data)
    except AgentRTError as error:
        return Undecided(edge, f"`{edge.predicate}` cannot be computed: {error.message}")
    state: EdgeState = "enabled" if value else "disabled"
    return Decision(edge.name, state, "code", f"`{edge.predicate}` is {str(value).lower()}")


def settle_otherwise(edges: Sequence[Edge], decisions: Sequence[Decision]) -> list[Decision]:
    """Return the decisions of ``otherwise`` edges: taken when no sibling is."""
    taken = [decision.edge for decision in decisions if decision.state == "enabled"]
    state: EdgeState = "disabled" if taken else "enabled"
    why = f"otherwise; taken: {', '.join(taken) or 'none'}"
    return [Decision(edge.name, state, "rule", why) for edge in edges if edge.otherwise]


async def decide_edges(
    edges: Sequence[Edge],
    data: Mapping[str, Any],
    *,
    evaluate: Evaluate,
    model: AskModel | None = None,
    person: AskPerson | None = None,
) -> Decided:
    """Decide every edge, in the order of ``edges``.

    A model's failure or an answer outside the closed set goes to the person where there is one.

    Raises:
        DecisionFailure: an edge is left that nobody could decide.
        ModelFailure: the model failed and there is no person to ask.
    """
    found: list[Decision] = []
    for edge in edges:
        if edge.otherwise:
            continue
        decision = by_code(edge, data, evaluate)
        if isinstance(decision, Undecided):
            decision = await _judged(decision, model, person)
        found.append(decision)
    found += settle_otherwise(edges, found)
    order = {edge.name: place for place, edge in enumerate(edges)}
    decided = Decided(tuple(sorted(found, key=lambda decision: order[decision.edge])))
    check_total(edges, decided.edges)
    return decided


def check_total(edges: Sequence[Edge], states: Mapping[str, str]) -> None:
    """Check that exactly the edges are decided, each to a state that exists.

    Raises:
        DecisionFailure: names what is invented, left out, or misspelt.
    """
    names = {edge.name for edge in edges}
    invented = sorted(set(states) - names)
    omitted = sorted(names - set(states))
    wrong = sorted(f"{k}={v!r}" for k, v in states.items() if v not in DECISIONS)
    problems = [
        f"{what}: {', '.join(found)}"
        for what, found in (("invented", invented), ("left out", omitted), ("not a state", wrong))
        if found
    ]
    if problems:
        raise DecisionFailure(
            f"The decision is not one over the step's out-edges ({'; '.join(problems)}).",
            remedy=f"Decide each of {sorted(names)} to enabled or disabled.",
        )


async def _judged(
    undecided: Undecided, model: AskModel | None, person: AskPerson | None
) -> Decision:
    """Ask the model, then the person."""
    why = undecided.why
    if model is not None:
        try:
            return _from_model(undecided, await model(undecided.edge))
        except (ModelFailure, DecisionFailure) as failure:
            if person is None:
                raise
            why = f"{why}; the model failed: {failure.message}"
    if person is not None:
        answer, by = await person(undecided.edge, why)
        return _from_person(undecided.edge, answer, by)
    edge = undecided.edge
    raise DecisionFailure(
        f"Nobody can decide {edge.name} ({edge.condition or edge.predicate}): {why}.",
        remedy="Configure a model, answer questions yourself, or write the condition as a "
        "predicate in backticks.",
    )


def _from_model(undecided: Undecided, choice: Choice) -> Decision:
    state = _state(undecided.edge, choice.answer)
    said = "" if choice.logprob is None else f", logprob {choice.logprob:.3f}"
    evidence = f"{choice.evidence}{said} ({undecided.why})"
    return Decision(
        undecided.edge.name, state, "model", evidence, choice.tokens, choice.cached_tokens
    )


def _from_person(edge: Edge, answer: str, by: str) -> Decision:
    evidence = "answered" if by == "person" else "no answer in time: the default"
    return Decision(edge.name, _state(edge, answer), "person", evidence)


def _state(edge: Edge, answer: str) -> EdgeState:
    """Return the state that an answer names.

    Raises:
        DecisionFailure: it names none.
    """
    if answer == "enabled":
        return "enabled"
    if answer == "disabled":
        return "disabled"
    raise DecisionFailure(
        f"{edge.name} was decided to {answer[:40]!r}, which is not a state.",
        remedy="Answer enabled or disabled.",
    )
