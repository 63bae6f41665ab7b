"""The schedule's alarms, and how long a failed attempt waits. Pure: time comes in as a number."""

from __future__ import annotations

import heapq
from hashlib import blake2b

from agentrt.workflows.guide import Retry

__all__ = ["Timers", "backoff"]


class Timers:
    """Alarms by (kind, key). Setting one again moves it; dropping one that is not set is fine."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], float] = {}
        self._heap: list[tuple[float, str, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, kind: str, key: str, at: float) -> None:
        """Ring at this time, instead of at the time set before, if any."""
        self._at[(kind, key)] = at
        heapq.heappush(self._heap, (at, kind, key))
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [(when, *alarm) for alarm, when in self._at.items()]
            heapq.heapify(self._heap)

    def drop(self, kind: str, key: str) -> float | None:
        """Forget an alarm and return the time it was set to."""
        return self._at.pop((kind, key), None)

    def at(self, kind: str, key: str) -> float | None:
        """When this alarm rings, or None where it is not set."""
        return self._at.get((kind, key))

    def clear(self) -> None:
        """Forget every alarm."""
        self._at.clear()
        self._heap.clear()

    def next(self) -> float | None:
        """When the first alarm rings."""
        while self._heap:
            at, kind, key = self._heap[0]
            if self._at.get((kind, key)) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> list[tuple[str, str]]:
        """Take out the alarms whose time has come, earliest first."""
        rung: list[tuple[str, str]] = []
        while (at := self.next()) is not None and at <= now:
            _, kind, key = heapq.heappop(self._heap)
            del self._at[(kind, key)]
            rung.append((kind, key))
        return rung


def backoff(retry: Retry, failures: int, *, seed: int, step: str) -> float:
    """Seconds to wait after the n-th failed attempt: exponential, jittered by a quarter each way.

    A function of the run's seed, the step and the count alone, so that a resumed run waits alike.
    """
    wait = retry.initial
    for _ in range(failures - 1):
        wait *= retry.factor
        if wait >= retry.longest:
            break
    digest = blake2b(f"{seed}/{step}/{failures}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return max(0.0, min(wait * (0.75 + 0.5 * share), retry.longest))
