"""The largest set of mutually incomparable nodes of a partial order.

By Dilworth's theorem it is as large as the fewest chains that cover the order, which is the number
of nodes less a largest matching between nodes and their successors. Sets are integers, one bit a
node, so that a phase of the matching costs about n^2/64 word operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["largest_antichain"]


def largest_antichain(after: Sequence[int]) -> int:
    """Return its size. ``after[i]`` holds bit j where i comes before j, transitively closed."""
    return len(after) - _Matching(after).size()


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Matching:
    """Hopcroft and Karp's matching of nodes (left) with successors (right)."""

    def __init__(self, after: Sequence[int]) -> None:
        self._after = after
        self._left: list[int | None] = [None] * len(after)
        self._right: list[int | None] = [None] * len(after)

    def size(self) -> int:
        self._greedy()
        while layers := self._layers():
            for node, partner in enumerate(self._left):
                if partner is None:
                    self._augment(node, layers)
        return sum(partner is not None for partner in self._left)

    def _greedy(self) -> None:
        free = (1 << len(self._after)) - 1
        for node, mask in enumerate(self._after):
            if choice := mask & free:
                self._match(node, (choice & -choice).bit_length() - 1)
                free &= ~(choice & -choice)

    def _match(self, node: int, successor: int) -> None:
        self._left[node], self._right[successor] = successor, node

    def _layers(self) -> list[int]:
        """Successors by their distance from unmatched nodes; empty where no free one is found."""
        unseen = (1 << len(self._after)) - 1
        frontier = [node for node, partner in enumerate(self._left) if partner is None]
        layers: list[int] = []
        found = False
        while frontier and not found:
            layer = 0
            for node in frontier:
                layer |= self._after[node] & unseen
            unseen &= ~layer
            layers.append(layer)
            partners = [self._right[successor] for successor in _bits(layer)]
            found = None in partners
            frontier = [partner for partner in partners if partner is not None]
        return layers if found else []

    def _augment(self, node: int, layers: list[int]) -> None:
        """Look for a way to a free successor through the layers; what is tried leaves them."""
        trail: list[tuple[int, int]] = []
        while True:
            depth = len(trail)
            choice = self._after[node] & layers[depth] if depth < len(layers) else 0
            if not choice:
                if not trail:
                    return
                node = trail.pop()[0]
                continue
            low = choice & -choice
            layers[depth] ^= low
            trail.append((node, low.bit_length() - 1))
            partner = self._right[trail[-1][1]]
            if partner is None:
                break
            node = partner
        for start, successor in trail:
            self._match(start, successor)
