"""Execution graphs that were declared: steps, transitions, and where a program stands in them.

A step is one LLM turn. Frameworks declare a program's graph before it runs and observe steps as
they start. Sources: SAGA (arXiv 2605.00528, 3.1, tier a); steps to execution as in KVFlow
(NeurIPS'25): over all ways from the steps under way, the least at an ordinary step and the most at
one that joins branches.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agentrt.errors import InvalidRequest

__all__ = ["DeclaredGraph", "Edge", "Step"]

MAX_STEPS = 1_000
ROUNDS = 200
FARTHEST = 10_000.0


@dataclass(frozen=True, slots=True)
class Step:
    """One LLM turn.

    Args:
        name: unique in its graph.
        tool: the tool that runs after it.
        shared_tokens: how many tokens its prompt shares with that of the step before it; None
            means that it goes on with the whole of it, as a ReAct loop does.
        join: whether it starts after ``any`` or after ``all`` of the steps that lead to it.
    """

    name: str
    tool: str | None = None
    shared_tokens: int | None = None
    join: Literal["any", "all"] = "any"


@dataclass(frozen=True, slots=True)
class Edge:
    """A transition. Probabilities out of one step that add up to more than 1 mean branches that
    run in parallel; less than 1 means that the program may end there. None shares what the stated
    ones leave equally (``1 / branching``).
    """

    source: str
    target: str
    probability: float | None = None


@dataclass(slots=True)
class DeclaredGraph:
    """A graph, and the steps of it that are under way (``active``) or over (``done``)."""

    steps: Mapping[str, Step]
    successors: Mapping[str, Mapping[str, float]]
    predecessors: Mapping[str, Sequence[str]]
    remaining: Mapping[str, float]
    """Expected steps after each step."""
    active: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, steps: Sequence[Step], edges: Sequence[Edge]) -> DeclaredGraph:
        """Make a graph.

        Raises:
            InvalidRequest: names repeat or are unknown, or a probability is not in [0, 1].
        """
        named = {step.name: step for step in steps}
        _check(steps, named, edges)
        outgoing: dict[str, list[Edge]] = {name: [] for name in named}
        predecessors: dict[str, list[str]] = {name: [] for name in named}
        for edge in edges:
            outgoing[edge.source].append(edge)
            predecessors[edge.target].append(edge.source)
        successors = {name: _shares(out) for name, out in outgoing.items()}
        remaining = _expected_remaining(named, successors, predecessors)
        return cls(named, successors, predecessors, remaining)

    def observe(self, name: str) -> bool:
        """A step starts: those under way that lead to it are over. False if it is not known."""
        if name not in self.steps:
            return False
        over = self.active.intersection(self.predecessors[name])
        self.active -= over
        self.done |= over
        self.active.add(name)
        self.done.discard(name)  # a loop has come round
        return True

    def next_steps(self) -> dict[str, float]:
        """Return how likely each step starts next, from any step under way; each at most 1."""
        likely: dict[str, float] = {}
        for source in self.active:
            for target, probability in self.successors[source].items():
                likely[target] = min(1.0, likely.get(target, 0.0) + probability)
        return likely

    def continues(self) -> float:
        """Return the probability that any step follows; 1 before the first."""
        if not self.active:
            return 1.0 if not self.done else 0.0
        ends = 1.0
        for source in self.active:
            ends *= 1.0 - min(1.0, sum(self.successors[source].values()))
        return 1.0 - ends

    def expected_remaining(self) -> float:
        """Return how many steps are expected after those under way."""
        if not self.active and not self.done:
            starts = [name for name in self.steps if not self.predecessors[name]]
            return sum(1.0 + self.remaining[name] for name in starts)
        return sum(self.remaining[name] for name in self.active)

    def reuse(self, length: int, whole: float) -> float:
        """Return which share of ``length`` tokens of KV the next steps are expected to use.

        SAGA, Eq. 5: the sum over successors of probability times shared prefix; ``whole`` is that
        of a step that goes on with all of it.
        """
        if length <= 0:
            return 0.0
        used = 0.0
        for name, probability in self.next_steps().items():
            shared = self.steps[name].shared_tokens
            used += probability * (whole if shared is None else min(shared, length) / length)
        return min(1.0, used)

    def steps_to_execution(self) -> dict[str, int]:
        """Return in how many steps each step can start; those under way have 0.

        Knuth's generalisation of Dijkstra's algorithm (1977): a join waits for its last branch.
        Steps that cannot start any more are left out.
        """
        found: dict[str, int] = {}
        missing = {
            name: sum(1 for each in self.predecessors[name] if each not in self.done)
            for name in self.steps
        }
        queue = [(0, name) for name in sorted(self.active)]
        while queue:
            distance, name = heapq.heappop(queue)
            if name in found:
                continue
            found[name] = distance
            for target in self.successors[name]:
                missing[target] -= 1
                if self.steps[target].join == "any" or missing[target] == 0:
                    heapq.heappush(queue, (distance + 1, target))
        return found


def _check(steps: Sequence[Step], named: Mapping[str, Step], edges: Sequence[Edge]) -> None:
    if not 0 < len(steps) <= MAX_STEPS or len(named) != len(steps):
        raise InvalidRequest(
            f"The graph has {len(steps)} steps with {len(named)} names.",
            remedy=f"Declare 1 to {MAX_STEPS} steps, each with a name of its own.",
        )
    pairs = {(edge.source, edge.target) for edge in edges}
    if len(pairs) != len(edges) or not {name for pair in pairs for name in pair} <= named.keys():
        raise InvalidRequest(
            "An edge repeats, or joins steps that are not declared.",
            remedy="Declare each edge once, between names of steps.",
        )
    for edge in edges:
        if edge.probability is not None and not 0.0 <= edge.probability <= 1.0:
            raise InvalidRequest(
                f"The edge from {edge.source} to {edge.target} has probability {edge.probability}.",
                remedy="Give a number from 0 to 1, or none.",
            )


def _shares(edges: Sequence[Edge]) -> dict[str, float]:
    """Return the probability of each target of one step's edges."""
    stated = sum(edge.probability for edge in edges if edge.probability is not None)
    open_edges = sum(1 for edge in edges if edge.probability is None)
    share = max(0.0, 1.0 - stated) / open_edges if open_edges else 0.0
    return {edge.target: share if edge.probability is None else edge.probability for edge in edges}


def _expected_remaining(
    steps: Mapping[str, Step],
    successors: Mapping[str, Mapping[str, float]],
    predecessors: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Return the expected number of steps after each, by rounds until nothing changes.

    A join is counted once: each of the branches that lead to it brings its share of it.
    """
    weight = {
        name: 1.0 / max(1, len(predecessors[name])) if step.join == "all" else 1.0
        for name, step in steps.items()
    }
    remaining = dict.fromkeys(steps, 0.0)
    backwards = list(steps)[::-1]  # graphs tend to be declared in order: one round is enough
    for _ in range(ROUNDS):
        moved = 0.0
        for name in backwards:
            after = successors[name].items()
            left = min(FARTHEST, sum(p * weight[to] * (1.0 + remaining[to]) for to, p in after))
            moved = max(moved, abs(left - remaining[name]))
            remaining[name] = left
        if moved < 1e-6:
            break
    return remaining
