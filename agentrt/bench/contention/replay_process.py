"""One replay: holds memory along a curve. Run by its path, it imports the standard library only.

usage: python -I -S replay_process.py SETTINGS.json

SETTINGS: base, chunk (bytes), pause (seconds), steps: [[running seconds, bytes], ...]. It prints
"ready", waits for a line on standard input, then allocates the base and follows the curve: it grows
by blocks of at most one chunk, touches every page of them, and gives back whole blocks only. At the
end it prints one JSON object and exits.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from typing import Any

PAGE = 4096
PIECE = 1 << 20
"""Bytes touched between two looks at the clock."""
LOOKS = 0.4
"""Length of a sleep between two looks, as a share of the longest gap that counts."""
ONES = b"\1" * (PIECE // PAGE)


class TraceClock:
    """Seconds that this process could run.

    A program that is frozen, throttled or made to wait for memory does not get on with its work, so
    the time of its curve must stand still too. A plain sleep would go on while frozen and hide the
    delay; this clock is looked at often, and of a gap longer than ``pause`` counts only so much.
    """

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.running = 0.0
        self.stopped = 0.0
        self._last = time.monotonic()

    def look(self) -> None:
        """Count the time since the last look."""
        now = time.monotonic()
        gap = now - self._last
        self._last = now
        self.running += min(gap, self.pause)
        self.stopped += max(0.0, gap - self.pause)

    def wait_until(self, running: float) -> None:
        """Sleep until the process has run for ``running`` seconds."""
        self.look()
        while (left := running - self.running) > 0:
            time.sleep(min(left, self.pause * LOOKS))
            self.look()


class Held:
    """The memory: anonymous mappings without huge pages, so that each page is one fault."""

    def __init__(self, chunk: int, clock: TraceClock) -> None:
        self.size = 0
        self.peak = 0
        self._chunk = chunk
        self._clock = clock
        self._blocks: list[mmap.mmap] = []

    def grow(self, target: int) -> None:
        """Map and touch until at least ``target`` bytes are held."""
        while self.size < target:
            self._add(min(self._chunk, -(-(target - self.size) // PAGE) * PAGE))
        self.peak = max(self.peak, self.size)

    def _add(self, size: int) -> None:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(mmap.MADV_NOHUGEPAGE)
        # A strided slice touches the pages in C; the interpreter runs once for 256 of them.
        for start in range(0, size, PIECE):
            end = min(start + PIECE, size)
            block[start:end:PAGE] = ONES[: (end - start) // PAGE]
            self._clock.look()
        self._blocks.append(block)
        self.size += size

    def shrink(self, target: int) -> None:
        """Give back whole blocks until no more than ``target`` bytes are held."""
        while self._blocks and self.size > target:
            block = self._blocks.pop()
            self.size -= len(block)
            block.close()


def replay(settings: dict[str, Any]) -> dict[str, Any]:
    """Follow the curve; times are seconds, ``started`` and ``ended`` on the system's clock."""
    started = time.monotonic()
    first = TraceClock(settings["pause"])
    base = Held(settings["chunk"], first)
    base.grow(settings["base"])
    begun = time.monotonic()
    clock = TraceClock(settings["pause"])
    held = Held(settings["chunk"], clock)
    taken = [_follow(held, clock, at, size) for at, size in settings["steps"]]
    ended = time.monotonic()
    return {
        "started": started,
        "ended": ended,
        "base_seconds": begun - started,
        "replay_seconds": ended - begun,
        "stopped_seconds": first.stopped + clock.stopped,
        "peak": base.size + held.peak,
        "latencies": [seconds for seconds in taken if seconds is not None],
    }


def _follow(held: Held, clock: TraceClock, at: float, size: int) -> float | None:
    """Wait for one sample's time and take its size; return the seconds that growing took.

    A smaller sample gives back whole blocks and so may leave less than it says: the next larger one
    grows from there. This reading gives the 61 allocations that were published for dask-11628.
    """
    clock.wait_until(at)
    if size <= held.size:
        held.shrink(size)
        return None
    begun = time.monotonic()
    held.grow(size)
    return time.monotonic() - begun


def main() -> None:
    """Read the settings, wait for the word, replay, tell."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    print("ready", flush=True)  # noqa: T201
    if sys.stdin.readline():
        print(json.dumps(replay(settings)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
