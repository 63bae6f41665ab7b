"""What prefill costs on this engine, learned from the steps it runs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["OnlinePrefillCost", "StepObserver"]


class StepObserver(Protocol):
    """Told of every step that was run."""

    def observe(self, prefilled: int, tokens: int, seconds: float) -> None:
        """Note a step of ``tokens`` tokens, ``prefilled`` of them prefill, and its duration."""
        ...


class OnlinePrefillCost:
    """Seconds to prefill so many tokens: a decayed ratio over steps that are mostly prefill."""

    def __init__(self, initial_seconds_per_token: float = 0.0002, decay: float = 0.95) -> None:
        self._initial = initial_seconds_per_token
        self._decay = decay
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, prefilled: int, tokens: int, seconds: float) -> None:
        """Learn from a step if at least half of its tokens, and 16 of them, were prefill."""
        if prefilled >= 16 and 2 * prefilled >= tokens:
            self._tokens = self._tokens * self._decay + prefilled
            self._seconds = self._seconds * self._decay + seconds

    def __call__(self, tokens: int) -> float:
        """Return the estimated seconds for ``tokens`` tokens."""
        rate = self._seconds / self._tokens if self._tokens else self._initial
        return rate * tokens
