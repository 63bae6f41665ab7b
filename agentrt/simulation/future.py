"""What happens next, for oracles: the simulator knows its workload."""

from __future__ import annotations

import math

__all__ = ["Future"]


class Future:
    """Return times by context and remaining times by program; the simulator writes them.

    It is a :class:`agentrt.scheduling.surroundings.Foresight`.
    """

    def __init__(self) -> None:
        self._returns: dict[str, float] = {}
        self._remaining: dict[str, float] = {}

    def returns_at(self, owner: str) -> float:
        """Return when a context is back, in seconds of the virtual clock; infinity: never."""
        return self._returns.get(owner, math.inf)

    def remaining_seconds(self, program_id: str) -> float:
        """Return how long the rest of a program takes alone; 0 if nothing is known of it."""
        return self._remaining.get(program_id, 0.0)

    def set_return(self, program: str, context: str, time: float) -> None:
        """Say when a context's next turn arrives; infinity: there is none."""
        self._returns[f"{program}\0{context}"] = time

    def set_remaining(self, program: str, seconds: float) -> None:
        """Say how long the rest of a program takes with the engine to itself."""
        self._remaining[program] = seconds

    def forget(self, program: str) -> None:
        """Drop what is known of a program that has ended."""
        self._remaining.pop(program, None)
        prefix = f"{program}\0"
        for owner in [owner for owner in self._returns if owner.startswith(prefix)]:
            del self._returns[owner]
