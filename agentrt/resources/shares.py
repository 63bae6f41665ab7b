"""CPU weights of the inner directories: as much as the most important call below them.

A weight counts among siblings only. A call of high priority in one program meets a low one of
another where their programs meet, so its program, and its tenant, must weigh as much as it does.
"""

from __future__ import annotations

import threading

from agentrt.resources.cgroup import CgroupTree, ToolGroup

__all__ = ["USUAL", "Shares"]

USUAL = 100
"""What the kernel gives a new directory."""


class Shares:
    """The weights of one run's inner directories. Thread-safe."""

    def __init__(self, tree: CgroupTree) -> None:
        self._tree = tree
        self._places: dict[str, tuple[str, ...]] = {}
        self._below: dict[str, dict[str, int]] = {}
        self._weights: dict[str, int] = {}
        self._lock = threading.Lock()

    def put(self, call: str, group: ToolGroup, weight: int) -> None:
        """A call weighs so much now."""
        with self._lock:
            if call not in self._places:
                self._places[call] = self._tree.places_above(group)
            for place in self._places[call]:
                self._below.setdefault(place, {})[call] = weight
                self._settle(place)

    def drop(self, call: str) -> None:
        """A call is over."""
        with self._lock:
            for place in self._places.pop(call, ()):
                below = self._below[place]
                del below[call]
                self._settle(place)
                if not below:
                    del self._below[place]

    def _settle(self, place: str) -> None:
        weight = max(self._below[place].values(), default=USUAL)
        if weight != self._weights.get(place, USUAL):
            # Where there is no cpu controller, the call itself reports that.
            self._tree.inner(place).set_weight(weight)
        if weight == USUAL:
            self._weights.pop(place, None)
        else:
            self._weights[place] = weight
