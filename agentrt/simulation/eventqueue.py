"""What is going to happen in a cluster, by time; at one time by kind, then in order of entry."""

from __future__ import annotations

import itertools
import math
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

__all__ = ["EventQueue", "Kind"]


class Kind(IntEnum):
    """A worker's step ends before anything else of the same moment: what it frees can be used."""

    STEP = 0
    CALL = 1
    ARRIVAL = 2
    DELIVERY = 3
    COPY = 4
    SCALE = 5
    EPOCH = 6


class EventQueue:
    """A heap of events; ``what`` is the kind's own."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, Kind, int, Any]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, time: float, kind: Kind, what: Any) -> None:
        """Enter an event."""
        heappush(self._heap, (time, kind, next(self._order), what))

    def pop(self) -> tuple[Kind, Any]:
        """Take the next event out."""
        _, kind, _, what = heappop(self._heap)
        return kind, what

    def next_time(self) -> float:
        """Return when the next event is; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf
