"""Where the nodes and edges of a plan lie in a picture: layers from top to bottom.

Long edges pass through the layers between by way of narrow waypoints. The order within a layer
follows the mean place of its neighbours; the places themselves are then the nearest to those means
that keep order and distance, found exactly by merging neighbours that would overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrt.workflows.plan import Plan

__all__ = ["BOX", "GAP", "Layout", "lay_out"]

BOX = (208.0, 58.0)
GAP = (28.0, 78.0)
"""Width and height of a node; least distance of nodes in a layer, and distance of layers."""

WAYPOINT = 24.0
SWEEPS = 12
MOST_WAYPOINTS = 20_000


@dataclass(frozen=True, slots=True)
class Layout:
    """``centres`` of the nodes, and for each edge by name the centres it passes, ends included.

    Coordinates grow rightwards and downwards; ``width`` and ``height`` hold everything.
    """

    width: float
    height: float
    centres: dict[str, tuple[float, float]]
    paths: dict[str, tuple[tuple[float, float], ...]]


@dataclass(slots=True)
class _Graph:
    """Items (nodes and waypoints) by number, in layers, with their neighbours above and below."""

    layers: list[list[int]] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    above: list[list[int]] = field(default_factory=list)
    below: list[list[int]] = field(default_factory=list)

    def add(self, level: int, width: float) -> int:
        self.widths.append(width)
        self.above.append([])
        self.below.append([])
        while len(self.layers) <= level:
            self.layers.append([])
        self.layers[level].append(len(self.widths) - 1)
        return len(self.widths) - 1

    def join(self, upper: int, lower: int) -> None:
        self.below[upper].append(lower)
        self.above[lower].append(upper)


def lay_out(plan: Plan) -> Layout:
    """Return the places of all nodes and edges. Deterministic."""
    graph = _Graph()
    items = {name: graph.add(node.level, BOX[0]) for name, node in plan.nodes.items()}
    chains = _chains(plan, graph, items)
    _order(graph)
    xs = _places(graph)
    ys = {item: level for level, layer in enumerate(graph.layers) for item in layer}
    shift = min(x - graph.widths[item] / 2 for item, x in enumerate(xs))
    points = [(x - shift, BOX[1] / 2 + ys[item] * (BOX[1] + GAP[1])) for item, x in enumerate(xs)]
    return Layout(
        width=max(x + graph.widths[item] / 2 for item, (x, _) in enumerate(points)),
        height=len(graph.layers) * (BOX[1] + GAP[1]) - GAP[1],
        centres={name: points[item] for name, item in items.items()},
        paths={name: tuple(points[item] for item in chain) for name, chain in chains.items()},
    )


def _chains(plan: Plan, graph: _Graph, items: Mapping[str, int]) -> dict[str, list[int]]:
    spans = sum(plan.nodes[e.target].level - plan.nodes[e.source].level - 1 for e in plan.edges)
    chains: dict[str, list[int]] = {}
    for edge in plan.edges:
        chain = [items[edge.source]]
        levels = range(plan.nodes[edge.source].level + 1, plan.nodes[edge.target].level)
        # A plan with more waypoints than anyone could follow gets straight lines instead.
        for level in levels if spans <= MOST_WAYPOINTS else ():
            chain.append(graph.add(level, WAYPOINT))
        chain.append(items[edge.target])
        if spans <= MOST_WAYPOINTS or not levels:
            for upper, lower in itertools.pairwise(chain):
                graph.join(upper, lower)
        chains[edge.name] = chain
    return chains


def _order(graph: _Graph) -> None:
    """Sort each layer by the mean rank of its neighbours, downwards and upwards in turn."""
    rank = [0.0] * len(graph.widths)
    for layer in graph.layers:
        _rank(layer, rank)
    best, crossings = [list(layer) for layer in graph.layers], _crossings(graph, rank)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        near = graph.above if down else graph.below
        for layer in graph.layers if down else graph.layers[::-1]:
            means = {
                item: _mean([rank[other] for other in near[item]], rank[item]) for item in layer
            }
            layer.sort(key=lambda item: (means[item], rank[item]))
            _rank(layer, rank)
        found = _crossings(graph, rank)
        if found < crossings:
            best, crossings = [list(layer) for layer in graph.layers], found
    graph.layers = best


def _rank(layer: Sequence[int], rank: list[float]) -> None:
    for place, item in enumerate(layer):
        rank[item] = place - (len(layer) - 1) / 2


def _crossings(graph: _Graph, rank: Sequence[float]) -> int:
    """Count pairs of lines between neighbouring layers that cross, by counting inversions."""
    total = 0
    for layer in graph.layers:
        ends = [rank[o] for item in layer for o in sorted(graph.below[item], key=rank.__getitem__)]
        total += _inversions(ends)[0]
    return total


def _inversions(values: list[float]) -> tuple[int, list[float]]:
    if len(values) < 2:
        return 0, values
    half = len(values) // 2
    (left_count, left), (right_count, right) = (
        _inversions(values[:half]),
        _inversions(values[half:]),
    )
    merged: list[float] = []
    count, i = left_count + right_count, 0
    for value in right:
        while i < len(left) and left[i] <= value:
            merged.append(left[i])
            i += 1
        merged.append(value)
        count += len(left) - i
    return count, merged + left[i:]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _places(graph: _Graph) -> list[float]:
    xs = [0.0] * len(graph.widths)
    for layer in graph.layers:
        _settle(layer, dict.fromkeys(layer, 0.0), graph.widths, xs)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in graph.layers if down else graph.layers[::-1]:
            near = graph.above if down else graph.below
            if sweep >= SWEEPS - 2:
                wanted = {
                    i: _mean([xs[o] for o in (*graph.above[i], *graph.below[i])], xs[i])
                    for i in layer
                }
            else:
                wanted = {i: _mean([xs[o] for o in near[i]], xs[i]) for i in layer}
            _settle(layer, wanted, graph.widths, xs)
    return xs


def _settle(
    layer: Sequence[int], wanted: Mapping[int, float], widths: Sequence[float], xs: list[float]
) -> None:
    """Place a layer nearest (least squares) to what is wanted, in order and without overlap.

    With the least distances taken off, order alone remains to be kept; that is isotonic
    regression: neighbours out of order are merged into a block at their mean.
    """
    offsets: list[float] = []
    for place, item in enumerate(layer):
        before = layer[place - 1] if place else item
        room = (widths[before] + widths[item]) / 2 + GAP[0] if place else 0.0
        offsets.append((offsets[-1] if offsets else 0.0) + room)
    merged: list[tuple[float, int]] = []
    for item, offset in zip(layer, offsets, strict=True):
        total, count = wanted[item] - offset, 1
        while merged and merged[-1][0] / merged[-1][1] > total / count:
            more = merged.pop()
            total, count = total + more[0], count + more[1]
        merged.append((total, count))
    at = iter(zip(layer, offsets, strict=True))
    for total, count in merged:
        for _ in range(count):
            item, offset = next(at)
            xs[item] = total / count + offset
