"""Keeping a stream of output within a cap, and the frames that Docker wraps streams in."""

from __future__ import annotations

from collections.abc import Iterator

from agentrt.sandbox.base import OutputCallback

__all__ = ["Capture", "Demultiplexer"]

HEAD = 4096


class Capture:
    """Takes all of a stream, keeps the first ``cap`` bytes, counts the rest.

    ``callback`` sees the kept bytes as they arrive. ``head`` holds the first bytes whatever the cap
    is. Feeding never blocks, so that a command that writes too much is not stalled by it.
    """

    def __init__(self, cap: int, callback: OutputCallback | None = None) -> None:
        self._cap = cap
        self._callback = callback
        self._kept: list[bytes] = []
        self._size = 0
        self.head = b""
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. What the callback raises goes to the caller."""
        if len(self.head) < HEAD:
            self.head += data[: HEAD - len(self.head)]
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
