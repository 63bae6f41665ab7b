"""StepFly's PlanDAG files: nodes with lists of edge names, read strictly and written back.

An edge is one string that stands in one node's output list and one node's input list; that names
look like ``edge_<source>_<target>`` is a habit, not a rule. Its condition is the one at its first
occurrence in the file, where a node's outputs come before its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge

__all__ = ["DagEdge", "DagNode", "PlanDag", "dag_to_json", "parse_plan_dag", "resolve_edges"]

_UNCONDITIONAL = frozenset({"", "none"})
_OTHERWISE = frozenset({"otherwise", "else"})
_REMEDY = "Correct the PlanDAG file, or remove it to plan from the guide's text."


@dataclass(frozen=True, slots=True)
class DagEdge:
    """An entry of an input or output list. ``condition`` is free English, ``none`` for always."""

    name: str
    condition: str = "none"
    line: int = 0


@dataclass(frozen=True, slots=True)
class DagNode:
    """A node as the file has it; ``name`` is normalised: ``start``, ``Step3.1``, ``end``."""

    name: str
    description: str
    inputs: tuple[DagEdge, ...]
    outputs: tuple[DagEdge, ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class PlanDag:
    """The nodes in file order."""

    nodes: tuple[DagNode, ...]
    path: str = ""

    def node(self, name: str) -> DagNode | None:
        """Return the node of this normalised name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    def occurrences(self) -> Iterator[tuple[DagNode, DagEdge, bool]]:
        """Every mention of an edge in reading order; True for an output."""
        for node in self.nodes:
            yield from ((node, edge, True) for edge in node.outputs)
            yield from ((node, edge, False) for edge in node.inputs)


def parse_plan_dag(text: str, path: str = "plan_dag.json") -> PlanDag:
    """Read a PlanDAG. Says nothing about whether its edges fit together: see resolve_edges.

    Raises:
        GuideError: not JSON, or not of the form ``{"nodes": [...]}``; names the place.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise GuideError(f"{path}:{error.lineno}: not JSON: {error.msg}.", remedy=_REMEDY) from None
    nodes = _items(data, "nodes", f"{path}:1", required=True)
    finder = _Lines(text)
    parsed = tuple(_node(item, f"{path}: nodes[{at}]", finder) for at, item in enumerate(nodes))
    seen: set[str] = set()
    for node in parsed:
        if node.name in seen:
            raise GuideError(f"{path}:{node.line}: two nodes are {node.name!r}.", remedy=_REMEDY)
        seen.add(node.name)
    return PlanDag(parsed, path)


def resolve_edges(dag: PlanDag) -> tuple[Edge, ...]:
    """Join both ends of every edge; edges in the order of their first mention.

    Raises:
        GuideError: an edge stands in one list only, or twice in lists of one kind; a node other
            than start has no input; a node named start or end is missing.
    """
    ends: dict[str, tuple[list[DagNode], list[DagNode]]] = {}
    first: dict[str, DagEdge] = {}
    for node, edge, is_output in dag.occurrences():
        first.setdefault(edge.name, edge)
        ends.setdefault(edge.name, ([], []))[0 if is_output else 1].append(node)
    _check_nodes(dag)
    return tuple(_joined(first[name], *ends[name], dag.path) for name in first)


def condition_of(text: str) -> tuple[str, bool]:
    """Return (condition, is "otherwise") of a PlanDAG's condition text."""
    plain = text.strip().rstrip(".").lower()
    if plain in _UNCONDITIONAL:
        return "", False
    return ("", True) if plain in _OTHERWISE else (text.strip(), False)


def dag_to_json(dag: PlanDag) -> str:
    """Write a PlanDAG in the format it is read from."""
    nodes = [
        {
            "node": node.name,
            "description": node.description,
            "input_edges": [{"edge": edge.name} for edge in node.inputs],
            "output_edges": [
                {"edge": edge.name, "condition": edge.condition} for edge in node.outputs
            ],
        }
        for node in dag.nodes
    ]
    return json.dumps({"nodes": nodes}, indent=2, ensure_ascii=False) + "\n"


def _joined(edge: DagEdge, sources: list[DagNode], targets: list[DagNode], path: str) -> Edge:
    if len(sources) != 1 or len(targets) != 1:
        raise GuideError(
            f"{path}:{edge.line}: edge {edge.name!r} is in {len(sources)} output lists and "
            f"{len(targets)} input lists.",
            remedy="Name it in exactly one output_edges list and one input_edges list.",
        )
    condition, otherwise = condition_of(edge.condition)
    return Edge(
        edge.name, sources[0].name, targets[0].name, condition, otherwise=otherwise, line=edge.line
    )


def _check_nodes(dag: PlanDag) -> None:
    for name in (START, END):
        if dag.node(name) is None:
            raise GuideError(f"{dag.path}:1: there is no node {name!r}.", remedy=_REMEDY)
    for node in dag.nodes:
        if node.name != START and not node.inputs:
            raise GuideError(
                f"{dag.path}:{node.line}: nothing leads to {node.name}: it has no input edge.",
                remedy="Add an input edge, or remove the node.",
            )


class _Lines:
    """Finds the lines of strings in the file, each search starting where the last one ended."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def of(self, value: str) -> int:
        """Return the line, from 1, of the next mention of a JSON string; 0 if there is none."""
        found = self._text.find(json.dumps(value, ensure_ascii=False), self._at)
        if found < 0:
            found = self._text.find(json.dumps(value), self._at)
        if found < 0:
            return 0
        self._at = found + 1
        return self._text.count("\n", 0, found) + 1


def _node(item: Any, place: str, finder: _Lines) -> DagNode:
    name = _text(item, "node", place)
    line = finder.of(name)
    by_key = {
        key: tuple(
            _edge(entry, f"{place}.{key}[{at}]", finder)
            for at, entry in enumerate(_items(item, key, place))
        )
        # The file's own order of the two lists decides where the next mention is found.
        for key in item
        if key in ("input_edges", "output_edges")
    }
    return DagNode(
        _node_name(name),
        _text(item, "description", place, ""),
        by_key.get("input_edges", ()),
        by_key.get("output_edges", ()),
        line,
    )


def _edge(item: Any, place: str, finder: _Lines) -> DagEdge:
    name = _text(item, "edge", place)
    return DagEdge(name, _text(item, "condition", place, "none"), finder.of(name))


def _node_name(name: str) -> str:
    plain = name.strip()
    return plain.lower() if plain.lower() in (START, END) else plain


def _items(data: Any, key: str, place: str, *, required: bool = False) -> list[Any]:
    found = data.get(key, None if required else []) if isinstance(data, Mapping) else None
    if not isinstance(found, list):
        raise GuideError(f"{place}: {key!r} must be a list.", remedy=_REMEDY)
    return found


def _text(data: Any, key: str, place: str, default: str | None = None) -> str:
    found = data.get(key, default) if isinstance(data, Mapping) else None
    if not isinstance(found, str) or (default is None and not found.strip()):
        raise GuideError(f"{place}: {key!r} must be a text.", remedy=_REMEDY)
    return found
