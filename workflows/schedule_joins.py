"""When a step may start and when it never can: joins, and what goes on after a conclusion. Pure."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from agentrt.workflows.guide import END, StepPolicy
from agentrt.workflows.schedule_graph import Graph
from agentrt.workflows.schedule_state import Inputs, RunState

__all__ = [
    "Verdict",
    "any_join",
    "edge_errors",
    "goes_on_after_conclusion",
    "verdict",
    "why_skipped",
]

Verdict: TypeAlias = Literal["wait", "fire", "skip"]


def verdict(policy: StepPolicy, inputs: Inputs) -> Verdict:
    """Whether a step's join is satisfied, can never be, or is still open.

    A step that no edge leads to can never start.
    """
    if inputs.pending + inputs.enabled + inputs.disabled == 0:
        return "skip"
    if policy.join == "all":
        return _all(inputs)
    if policy.join == "quorum":
        return _quorum(max(policy.quorum, 1), inputs)
    return any_join(inputs)


def any_join(inputs: Inputs) -> Verdict:
    """The rule "none pending, any enabled"."""
    if inputs.pending:
        return "wait"
    return "fire" if inputs.enabled else "skip"


def _all(inputs: Inputs) -> Verdict:
    if inputs.disabled:
        return "skip"
    return "wait" if inputs.pending else "fire"


def _quorum(needed: int, inputs: Inputs) -> Verdict:
    if inputs.enabled >= needed:
        return "fire"
    return "wait" if inputs.enabled + inputs.pending >= needed else "skip"


def why_skipped(policy: StepPolicy, inputs: Inputs) -> str:
    """Say in one line why a step can never start."""
    total = inputs.pending + inputs.enabled + inputs.disabled
    if total == 0:
        return "no edge leads to it"
    if policy.join == "all" and inputs.disabled < total:
        return f"{inputs.disabled} of {total} incoming edges disabled, and it needs all"
    if policy.join == "quorum" and inputs.disabled < total:
        return f"{inputs.disabled} of {total} incoming edges disabled, and it needs {policy.quorum}"
    return "every incoming edge is disabled"


def goes_on_after_conclusion(graph: Graph, state: RunState) -> set[str]:
    """The steps that ``finish-join`` lets go on: joins that have begun to fill, all before them.

    A join is a step with several incoming edges; it has begun once one of them is enabled.
    """
    joins = [
        name
        for name, edges in graph.incoming.items()
        if name != END
        and len(edges) > 1
        and state.inputs[name].enabled
        and state.steps[name].status in ("pending", "waiting", "running")
    ]
    return graph.before(joins)


def edge_errors(expected: tuple[str, ...], decided: Any) -> str:
    """What is wrong with a step's edge decisions; empty when they are total and well formed."""
    if decided is None:
        decided = {}
    if not isinstance(decided, dict):
        return f"edge decisions must be a mapping, not {type(decided).__name__}"
    unknown = [str(edge) for edge in decided if edge not in expected]
    omitted = [edge for edge in expected if edge not in decided]
    misspelt = [
        f"{edge}={decided[edge]!r}"
        for edge in expected
        if edge in decided and decided[edge] not in ("enabled", "disabled")
    ]
    parts = (("unknown", unknown), ("undecided", omitted), ("neither state", misspelt))
    return "; ".join(f"{what} edges: {', '.join(names)}" for what, names in parts if names)
