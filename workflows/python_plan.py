"""Steps that are functions, as a guide: who waits for whom, read off parameters and edges."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, Join, Parameter, Step
from agentrt.workflows.python_steps import After, StepFunction, listed

__all__ = ["FINISH", "condition_text", "guide_of"]

FINISH = "finish"
"""The step that waits for every last step of a pipeline that has several."""


def guide_of(name: str, version: str, steps: Mapping[str, StepFunction[Any, Any]]) -> Guide:
    """Return the guide that these steps are.

    Raises:
        GuideError: an edge comes from a step that is not there.
    """
    incoming = {each.name: _incoming(each, steps) for each in steps.values()}
    _check_sources(incoming, steps)
    has_next = {edge.source for edges in incoming.values() for edge in edges}
    roots = [each for each, edges in incoming.items() if not edges]
    leaves = [each for each in steps if each not in has_next]
    last = END if len(leaves) == 1 else FINISH
    made = [Step(START, "Start", edges=tuple(_edge(START, each) for each in roots))]
    for each, function in steps.items():
        out = [
            _conditional(e, target)
            for target, edges in incoming.items()
            for e in edges
            if e.source == each
        ]
        out += [_edge(each, last)] if each in leaves else []
        policy = replace(function.policy, join=function.join or _join(function, steps))
        text = inspect.getdoc(function.function) or ""
        made.append(Step(each, each, text, edges=tuple(out), policy=policy))
    if last == FINISH:
        made.append(Step(FINISH, "Finish", edges=(_edge(FINISH, END),)))
    return Guide(
        name, name, tuple(made), _inputs(steps), f"version {version}", source_format="python"
    )


def _incoming(function: StepFunction[Any, Any], steps: Mapping[str, object]) -> list[After]:
    """Return the edges into a step: the explicit ones, then those of its data."""
    explicit = {edge.source: edge for edge in function.after}
    sources = [each for found in function.needs(steps).values() for each in listed(found)]
    return [*explicit.values(), *(After(s) for s in dict.fromkeys(sources) if s not in explicit)]


def _check_sources(incoming: Mapping[str, Sequence[After]], steps: Mapping[str, object]) -> None:
    for name, edges in incoming.items():
        for edge in edges:
            if edge.source not in steps:
                raise GuideError(
                    f"{name} comes after {edge.source}, which is not a step of the pipeline.",
                    remedy="Add it to the list of steps.",
                )


def _join(function: StepFunction[Any, Any], steps: Mapping[str, object]) -> Join:
    """All results that a function cannot do without; else whatever is there."""
    needs = function.needs(steps)
    empty = inspect.Parameter.empty
    must = [name for name in needs if function.parameters[name].default is empty]
    return "all" if must and len(must) == len(needs) else "any"


def _edge(source: str, target: str) -> Edge:
    return Edge(f"edge_{source}_{target}", source, target)


def condition_text(source: str, target: str) -> str:
    """Return what stands for a condition that is a function."""
    return f"when {source} -> {target}"


def _conditional(edge: After, target: str) -> Edge:
    plain = _edge(edge.source, target)
    if edge.otherwise:
        return replace(plain, otherwise=True)
    if edge.when is None:
        return plain
    text = edge.when if isinstance(edge.when, str) else condition_text(edge.source, target)
    return replace(plain, condition=text, predicate=text)


def _inputs(steps: Mapping[str, StepFunction[Any, Any]]) -> tuple[Parameter, ...]:
    """Return the parameters that no step and no bound value gives."""
    found: dict[str, Parameter] = {}
    for function in steps.values():
        needs = function.needs(steps)
        for name, parameter in function.parameters.items():
            if name not in needs and name not in function.bound:
                required = parameter.default is inspect.Parameter.empty
                known = found.get(name)
                needed = required or (known is not None and known.required)
                found[name] = Parameter(name, required=needed)
    return tuple(found.values())
