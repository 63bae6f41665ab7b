"""The link between the page pool and a host tier: one copy after another, each way by itself."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from agentrt.scheduling.plan import Transfer

__all__ = ["Link"]


class Link:
    """Takes ``page_seconds`` a page; loads and stores do not slow each other down (full duplex)."""

    def __init__(self, page_seconds: float) -> None:
        self._page_seconds = page_seconds
        self._busy_until = {"load": 0.0, "store": 0.0}
        self._queues: dict[str, deque[tuple[float, int]]] = {"load": deque(), "store": deque()}

    def begin(self, transfers: Iterable[Transfer], now: float) -> None:
        """Queue copies behind those under way."""
        for transfer in transfers:
            start = max(self._busy_until[transfer.kind], now)
            end = start + self._page_seconds * len(transfer.pages)
            self._busy_until[transfer.kind] = end
            self._queues[transfer.kind].append((end, transfer.ticket))

    def take_done(self, now: float) -> list[int]:
        """Return the tickets of copies that are done by ``now``, once."""
        done: list[int] = []
        for queue in self._queues.values():
            while queue and queue[0][0] <= now:
                done.append(queue.popleft()[1])
        return done

    def next_done(self) -> float:
        """Return when the next copy is done; infinity if none is under way."""
        return min((queue[0][0] for queue in self._queues.values() if queue), default=math.inf)
