"""A clock that only moves when it is told to."""

from __future__ import annotations

from agentrt.errors import InternalError

__all__ = ["VirtualClock"]


class VirtualClock:
    """Seconds since the start of a simulation. Call it to read it, as one reads a real clock."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on by ``seconds`` and return the new time."""
        return self.advance_to(self.now + seconds)

    def advance_to(self, time: float) -> float:
        """Move on to ``time`` and return it.

        Raises:
            InternalError: ``time`` lies in the past.
        """
        if time < self.now:
            raise InternalError(f"Virtual time would run back from {self.now} to {time}.")
        self.now = time
        return time
