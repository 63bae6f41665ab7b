"""The checks that make a guide's steps and edges a directed acyclic graph."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, Step

__all__ = ["edges_of", "steps_by_id", "topological", "wrong"]


def steps_by_id(guide: Guide) -> dict[str, Step | None]:
    """Return the nodes in the guide's order, ``start`` first and ``end`` last.

    Raises:
        GuideError: an id is there twice, or there are no steps.
    """
    found: dict[str, Step | None] = {START: None}
    last: Step | None = None
    for step in guide.steps:
        if found.get(step.id) is not None or (step.id == END and last is not None):
            raise wrong(guide, step.line, f"{step.id} is there twice.", "Number each step once.")
        if step.id == END:
            last = step
        else:
            found[step.id] = step
    if len(found) < 2:
        raise wrong(guide, 1, "The guide has no steps.", "Add a section `## Step 1 - Title`.")
    return found | {END: last}


def edges_of(guide: Guide, steps: Mapping[str, Step | None]) -> list[Edge]:
    """Return all edges, those out of ``start`` first; they are implied where none are declared.

    Raises:
        GuideError: a name is there twice, or an end of an edge is no step.
    """
    begin, first = steps[START], guide.steps[0]
    found = [Edge(f"edge_{START}_{first.id}", START, first.id, line=first.line)]
    if begin is not None:
        found = list(begin.edges)
    for step in guide.steps:
        found += step.edges if step.id != START else ()
    names: set[str] = set()
    for edge in found:
        if edge.name in names:
            raise wrong(guide, edge.line, f"Edge {edge.name} is there twice.", "Rename one.")
        names.add(edge.name)
        for node in (edge.source, edge.target):
            if node not in steps:
                raise wrong(
                    guide,
                    edge.line,
                    f"{edge.name} names {node}, which is not in the guide.",
                    "Connect existing steps, or end.",
                )
        if edge.target == START or edge.source == END:
            raise wrong(
                guide, edge.line, f"{edge.name} leads into start or out of end.", "Remove it."
            )
    return found


def wrong(guide: Guide, line: int, message: str, remedy: str) -> GuideError:
    """Return the error for this line of the guide."""
    return GuideError(f"{guide.path or guide.name}:{line}: {message}", remedy=remedy)


def topological(
    guide: Guide,
    index: Mapping[str, int],
    incoming: Mapping[str, Sequence[Edge]],
    outgoing: Mapping[str, Sequence[Edge]],
) -> tuple[str, ...]:
    """Return a topological order, ties in the guide's order (``index``).

    Raises:
        GuideError: the connections form a cycle, which the message names.
    """
    names = list(index)
    missing = [len(incoming[node]) for node in names]
    ready = [at for at, count in enumerate(missing) if not count]
    order: list[str] = []
    while ready:
        node = names[heapq.heappop(ready)]
        order.append(node)
        for edge in outgoing[node]:
            target = index[edge.target]
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    if len(order) < len(names):
        raise _cycle(guide, set(names) - set(order), incoming)
    return tuple(order)


def _cycle(guide: Guide, left: set[str], incoming: Mapping[str, Sequence[Edge]]) -> GuideError:
    """Each node left over has a predecessor that is left over: going back must come round."""
    trail: list[str] = [min(left)]
    while True:
        edge = next(edge for edge in incoming[trail[-1]] if edge.source in left)
        if edge.source in trail:
            loop = [*trail[trail.index(edge.source) :], edge.source]
            shown = " -> ".join(reversed(loop))
            return wrong(
                guide,
                edge.line,
                f"The connections form a cycle: {shown}.",
                "A guide runs forward only; use the policy `for each` to repeat over entities.",
            )
        trail.append(edge.source)
