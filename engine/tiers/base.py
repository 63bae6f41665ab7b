"""What the engine asks of whoever copies pages between the tiers. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrt.engine.tiers.files import FileStatistics
from agentrt.scheduling.plan import Transfer

__all__ = ["CopyDone", "PageMover", "TierStatistics"]


@dataclass(frozen=True, slots=True)
class CopyDone:
    """Tickets of copies that are over since they were last asked for."""

    done: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    """The target pages hold nothing that may be read."""


@dataclass(frozen=True, slots=True)
class TierStatistics:
    """Counters since the start: pages, bytes and seconds copied each way.

    ``copies`` counts single copies of runs of pages; ``failed`` counts transfers.
    """

    host_pages: int
    stored_pages: int = 0
    loaded_pages: int = 0
    stored_bytes: int = 0
    loaded_bytes: int = 0
    stored_seconds: float = 0.0
    loaded_seconds: float = 0.0
    copies: int = 0
    transfers: int = 0
    failed: int = 0
    files: FileStatistics | None = None
    """Pages in files, where there is such a tier."""


class PageMover(Protocol):
    """Copies pages beside the steps. The engine's thread calls it; it has one of its own."""

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; ``wake`` is called, in the mover's thread, whenever a copy is over."""
        ...

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Queue copies, in this order, behind those under way. Never blocks."""
        ...

    def take_over(self) -> CopyDone:
        """Return the tickets of copies that are over, once."""
        ...

    def halt(self) -> None:
        """Drop what has not begun, wait for what is under way, and tell of none of it.

        What there was in the pool and in host memory is worth nothing any more.
        """
        ...

    def resume(self) -> None:
        """Go on after ``halt``: the pool may have been made anew."""
        ...

    def statistics(self) -> TierStatistics:
        """Return the counters. Any thread may ask."""
        ...

    def close(self, *, save: bool) -> None:
        """Drop what has not begun, wait for the copy under way, end the thread. Idempotent.

        With ``save`` what is kept in host memory goes to files, where there is such a tier.
        """
        ...
