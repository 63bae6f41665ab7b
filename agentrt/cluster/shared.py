"""Which leading pieces of prompts each worker is thought to hold, whoever sent them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import takewhile

__all__ = ["SharedPrefixes"]


class SharedPrefixes:
    """Piece names by worker, the least recently used forgotten first.

    A guess: the worker may have evicted a piece that is still listed. A wrong guess costs a
    prefill, never a wrong token.
    """

    def __init__(self) -> None:
        self._held: dict[str, OrderedDict[Hashable, None]] = {}

    def count(self, worker: str, keys: Sequence[Hashable]) -> int:
        """Return how many leading ``keys`` the worker is thought to hold."""
        held = self._held.get(worker)
        return sum(1 for _ in takewhile(held.__contains__, keys)) if held else 0

    def add(self, worker: str, keys: Sequence[Hashable], limit: int) -> None:
        """Note that a worker computes ``keys``; it can hold ``limit`` of them."""
        if not keys:
            return
        held = self._held.setdefault(worker, OrderedDict())
        # The first pieces are touched last: a tail without its head is worth nothing.
        for key in reversed(keys):
            held[key] = None
            held.move_to_end(key)
        while len(held) > limit:
            held.popitem(last=False)

    def forget(self, worker: str) -> None:
        """Forget what a worker held: it is gone."""
        self._held.pop(worker, None)
