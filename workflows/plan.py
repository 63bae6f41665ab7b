"""The plan of a guide: its steps as a checked directed acyclic graph, and what follows from that.

Nodes are kept in the guide's order (``start`` first, ``end`` last), because StepFly's firing order
depends on it; ``order`` is topological, ties in the guide's order. Both are deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, Step, StepPolicy
from agentrt.workflows.plan_fingerprint import fingerprint
from agentrt.workflows.plan_graph import edges_of, steps_by_id, topological, wrong
from agentrt.workflows.plan_width import largest_antichain

__all__ = ["Estimate", "Plan", "PlanNode", "estimate", "make_plan"]


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One node with its edges. ``step`` is None for ``start`` and ``end`` (unless declared).

    ``index`` is its place in the guide; ``level`` the longest way to it from ``start`` in edges,
    or from itself where it cannot be reached.
    """

    id: str
    title: str
    step: Step | None
    index: int
    level: int
    incoming: tuple[Edge, ...]
    outgoing: tuple[Edge, ...]

    @property
    def policy(self) -> StepPolicy:
        """How the node is run; the defaults for ``start`` and ``end``."""
        return self.step.policy if self.step else StepPolicy()


@dataclass(frozen=True)
class Plan:
    """A guide's graph. ``nodes`` include ``start`` and ``end``; ``fingerprint`` is hexadecimal.

    The fingerprint changes with the guide, its queries, its nested guides and the format.
    """

    guide: Guide
    nodes: dict[str, PlanNode]
    edges: tuple[Edge, ...]
    order: tuple[str, ...]
    fingerprint: str
    _before: dict[str, int] = field(repr=False, compare=False, default_factory=dict)

    def incoming(self, step: str) -> tuple[Edge, ...]:
        """Return the edges into a step, in the guide's order. Raises KeyError: no such step."""
        return self.nodes[step].incoming

    def outgoing(self, step: str) -> tuple[Edge, ...]:
        """Return the edges out of a step, in the guide's order. Raises KeyError: no such step."""
        return self.nodes[step].outgoing

    @property
    def steps(self) -> tuple[str, ...]:
        """The nodes beside ``start`` and ``end``, in the guide's order."""
        return tuple(node for node in self.nodes if node not in (START, END))

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The nodes that no way from ``start`` leads to, in the guide's order."""
        begin = 1 << self.nodes[START].index
        return tuple(n for n in self.nodes if n != START and not self._before[n] & begin)

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """The nodes by level, each level in the guide's order."""
        found: list[list[str]] = [[] for _ in range(1 + max(n.level for n in self.nodes.values()))]
        for node in self.nodes.values():
            found[node.level].append(node.id)
        return tuple(tuple(level) for level in found)

    def comes_before(self, step: str, other: str) -> bool:
        """Return whether a way leads from ``step`` to ``other``. Raises KeyError: no such step."""
        return bool(self._before[other] >> self.nodes[step].index & 1)

    def upstream(self, step: str) -> tuple[str, ...]:
        """Return the steps before this one, in topological order, without ``start``.

        Raises:
            KeyError: there is no such step.
        """
        before = self._before[step]
        return tuple(n for n in self.order if n != START and before >> self.nodes[n].index & 1)

    def width(self) -> int:
        """Return the most steps that could be under way at once: no two lie on one way.

        Conditions are not looked at, so branches that exclude each other count as parallel.
        """
        steps = frozenset(self.steps)
        inner = ((1 << len(self.nodes)) - 1) ^ (1 << self.nodes[START].index)
        inner ^= 1 << self.nodes[END].index
        after = dict.fromkeys(self.nodes, 0)
        for node in reversed(self.order):
            for edge in self.nodes[node].outgoing:
                after[node] |= after[edge.target] | (1 << self.nodes[edge.target].index & inner)
        # The two ends are nobody's successor here, and are covered by chains of their own.
        return largest_antichain([after[node] if node in steps else 0 for node in self.nodes]) - 2

    def critical_path(self, times: Mapping[str, float]) -> tuple[tuple[str, ...], float]:
        """Return the longest way by the steps' times in seconds, and its sum.

        ``times`` names every step that can be reached; ``start`` and ``end`` take none and are not
        part of the answer.

        Raises:
            GuideError: a step has no time, or a negative one.
        """
        unreachable = set(self.unreachable)
        best: dict[str, tuple[float, str | None]] = {}
        for node in self.order:
            if node in unreachable:
                continue
            sources = (edge.source for edge in self.nodes[node].incoming)
            ways = [(best[source][0], source) for source in sources if source in best]
            longest = max(ways, key=lambda way: way[0]) if ways else (0.0, None)
            best[node] = (longest[0] + _time(node, times), longest[1])
        last = max(best, key=lambda node: best[node][0])
        return _trace(best, last), best[last][0]


def _time(node: str, times: Mapping[str, float]) -> float:
    if node in (START, END):
        return 0.0
    seconds = times.get(node, -1.0)
    if not seconds >= 0:
        raise GuideError(
            f"There is no time for {node}.", remedy="Give the seconds of every step that can run."
        )
    return seconds


def _trace(best: Mapping[str, tuple[float, str | None]], last: str) -> tuple[str, ...]:
    path: list[str] = []
    at: str | None = last
    while at is not None:
        if at not in (START, END):
            path.append(at)
        at = best[at][1]
    return tuple(reversed(path))


def make_plan(guide: Guide) -> Plan:
    """Plan a guide. The run begins in the first step, unless the guide has a step ``start``.

    Reads the queries' file and nested guides beside ``guide.path``, for the fingerprint.

    Raises:
        GuideError: ids or edge names repeat, an edge leads nowhere, the connections form a cycle,
            a step reads one that does not come before it, or a file is missing.
    """
    steps = steps_by_id(guide)
    edges = edges_of(guide, steps)
    incoming: dict[str, list[Edge]] = {node: [] for node in steps}
    outgoing: dict[str, list[Edge]] = {node: [] for node in steps}
    for edge in edges:
        outgoing[edge.source].append(edge)
        incoming[edge.target].append(edge)
    index = {node: at for at, node in enumerate(steps)}
    order = topological(guide, index, incoming, outgoing)
    levels: dict[str, int] = {}
    before: dict[str, int] = {}
    for node in order:
        sources = [edge.source for edge in incoming[node]]
        levels[node] = max((levels[source] + 1 for source in sources), default=0)
        before[node] = 0
        for source in sources:
            before[node] |= before[source] | 1 << index[source]
    nodes = {
        node: PlanNode(
            node,
            step.title if step else node.capitalize(),
            step,
            index[node],
            levels[node],
            tuple(incoming[node]),
            tuple(outgoing[node]),
        )
        for node, step in steps.items()
    }
    plan = Plan(guide, nodes, tuple(edges), order, fingerprint(guide), before)
    _check_reads(plan)
    return plan


def _check_reads(plan: Plan) -> None:
    for node in plan.nodes.values():
        for other in node.step.reads if node.step else ():
            if other not in plan.nodes or not plan.comes_before(other, node.id):
                raise wrong(
                    plan.guide,
                    node.step.line if node.step else 0,
                    f"{node.id} reads {other}, which does not come before it.",
                    "Connect the two, or remove it from `reads`.",
                )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run may need. Tokens are of prompts, at four characters each.

    ``tokens`` are each step's own; ``shared`` those of the guide's text, which all steps share;
    ``total`` is ``shared`` once and every step once. ``memory`` (bytes) and ``cpu`` (cores) are the
    largest sums of declared limits over the steps of one level; ``undeclared`` names the steps that
    declare no memory and are not in the sum.
    """

    tokens: dict[str, int]
    shared: int
    total: int
    width: int
    memory: int
    cpu: float
    undeclared: tuple[str, ...]


def estimate(plan: Plan) -> Estimate:
    """Estimate tokens from the lengths of the texts, and resources from the policies."""
    tokens = {name: _tokens(_own_text(plan.nodes[name])) for name in plan.steps}
    shared = _tokens(plan.guide.text or plan.guide.overview)
    levels = [[plan.nodes[name].policy for name in level] for level in plan.levels]
    return Estimate(
        tokens=tokens,
        shared=shared,
        total=shared + sum(tokens.values()),
        width=plan.width(),
        memory=max(sum(policy.memory or 0 for policy in level) for level in levels),
        cpu=max(sum(policy.cpu or 0.0 for policy in level) for level in levels),
        undeclared=tuple(name for name in plan.steps if plan.nodes[name].policy.memory is None),
    )


def _tokens(text: str) -> int:
    return -(-len(text) // 4)


def _own_text(node: PlanNode) -> str:
    step = node.step
    parts = [node.title, *(edge.condition or edge.predicate or "" for edge in node.outgoing)]
    if step:
        parts += [step.instructions, step.command or "", *(use.query for use in step.queries)]
    return "\n".join(parts)
