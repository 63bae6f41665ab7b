"""The way in: open, draining (what runs may go on) or cut (everything is to end now)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentrt.serving.errors import Draining

__all__ = ["Gate"]


class Gate:
    """Knows the turns that run, so that shutting down can refuse new ones and end the rest.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._stops: dict[object, Callable[[], None]] = {}
        self._draining = False
        self._cut = False

    @property
    def draining(self) -> bool:
        """Whether new turns are refused."""
        return self._draining

    @property
    def is_cut(self) -> bool:
        """Whether running turns were told to end."""
        return self._cut

    @property
    def running(self) -> int:
        """How many turns are between their request and the end of their answer."""
        return len(self._stops)

    def check(self) -> None:
        """Raise ``Draining`` if no new turn may start."""
        if self._draining:
            raise Draining(
                "The server is shutting down.", remedy="Try again, or ask another server."
            )

    @contextmanager
    def guard(self, stop: Callable[[], None]) -> Iterator[None]:
        """Count a turn while the block runs; ``stop`` is called if it has to end early."""
        token = object()
        self._stops[token] = stop
        try:
            if self._cut:
                stop()
            yield
        finally:
            del self._stops[token]

    def drain(self) -> None:
        """Refuse new turns from now on."""
        self._draining = True

    def cut(self) -> None:
        """Refuse new turns and end all that run."""
        self._draining = self._cut = True
        for stop in list(self._stops.values()):
            stop()
