"""What one step has to say to its readers, sorted by the event loop they live in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from agentrt.engine.stream import Bridge, Chunk, TurnStream
from agentrt.scheduling.plan import TurnStats

__all__ = ["Outbox"]

_Letter: TypeAlias = tuple[TurnStream, Chunk, TurnStats | None, str | None]


class Outbox:
    """Collects chunks, then posts them: one wake-up a loop, whatever the number of turns."""

    def __init__(self) -> None:
        self._letters: dict[Bridge, list[_Letter]] = {}

    def add(
        self,
        stream: TurnStream,
        chunk: Chunk,
        stats: TurnStats | None = None,
        error: str | None = None,
    ) -> None:
        """Put in a chunk; ``stats`` and ``error`` go with a last one."""
        self._letters.setdefault(stream.bridge, []).append((stream, chunk, stats, error))

    def send(self) -> Iterator[str]:
        """Post everything; yield the ids of the turns whose reader's loop has ended."""
        letters, self._letters = self._letters, {}
        lost = [group for bridge, group in letters.items() if not bridge.post(_deliver, group)]
        for group in lost:
            for stream, *_ in group:
                yield stream.turn_id


def _deliver(letters: list[_Letter]) -> None:
    """Run in the readers' loop."""
    for stream, chunk, stats, error in letters:
        stream.feed(chunk, stats, error)
