"""Keeping a stream of output within a cap, and the frames that Docker wraps streams in."""

from __future__ import annotations

from collections.abc import Iterator

from agentrt.sandbox.base import OutputCallback

__all__ = ["Capture", "Demultiplexer"]

HEAD = 4096


class Capture:
    """Takes all of a stream, keeps the first ``cap`` bytes, counts the rest.

    ``callback`` sees the kept bytes as they arrive. ``head`` holds the first bytes whatever the cap
    is. Feeding never blocks, so that a command that writes too much is not stalled by it. A stream
    that begins with ``aside`` is not the command's own: it stays out of the callback's sight.
    """

    def __init__(
        self, cap: int, callback: OutputCallback | None = None, *, aside: bytes = b""
    ) -> None:
        self._cap = cap
        self._callback = callback
        self._aside = aside
        self._undecided = b""
        self._is_aside = False
        self._kept: list[bytes] = []
        self._size = 0
        self.head = b""
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. What the callback raises goes to the caller."""
        if len(self.head) < HEAD:
            self.head += data[: HEAD - len(self.head)]
        if self._aside:
            data = self._decide(data)
        if data and not self._is_aside:
            self._take(data)

    def finish(self) -> None:
        """Take what was held back when the stream ended before it could be told apart."""
        data, self._undecided, self._aside = self._undecided, b"", b""
        if data:
            self._take(data)

    def _decide(self, data: bytes) -> bytes:
        """Hold the beginning back until it differs from ``aside`` or is it."""
        seen = self._undecided + data
        if len(seen) < len(self._aside) and self._aside.startswith(seen):
            self._undecided = seen
            return b""
        self._is_aside = seen.startswith(self._aside)
        self._undecided, self._aside = b"", b""
        return seen

    def _take(self, data: bytes) -> None:
        kept = data[: max(0, self._cap - self._size)]
        self.dropped += len(data) - len(kept)
        if kept:
            self._kept.append(kept)
            self._size += len(kept)
            if self._callback is not None:
                self._callback(kept)

    @property
    def truncated(self) -> bool:
        """Whether bytes were dropped."""
        return self.dropped > 0

    def value(self) -> bytes:
        """What was kept, with a mark that says how much is missing."""
        if self._is_aside:
            return self.head
        mark = f"\n[agentrt: {self.dropped} bytes dropped]\n" if self.dropped else ""
        return b"".join(self._kept) + mark.encode()


class Demultiplexer:
    """Splits Docker's attach stream: frames of an 8-byte header (stream, 0, 0, 0, length)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(stream, payload)`` for every complete frame; 1 is stdout, 2 is stderr."""
        self._rest += data
        while len(self._rest) >= 8:
            end = 8 + int.from_bytes(self._rest[4:8], "big")
            if len(self._rest) < end:
                return
            stream, payload = self._rest[0], self._rest[8:end]
            self._rest = self._rest[end:]
            yield stream, payload
