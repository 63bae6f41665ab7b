"""What prefill costs on this engine, learned from the steps it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["OnlinePrefillCost", "StepObserver"]


class StepObserver(Protocol):
    """Told of every step that was run."""

    def observe(self, prefilled: int, tokens: int, seconds: float) -> None:
        """Note a step of ``tokens`` tokens, ``prefilled`` of them prefill, and its duration."""
        ...


class OnlinePrefillCost:
    """Seconds to prefill so many tokens: a curve, and how it compares with the steps that are run.

    ``curve`` is what was measured; None: a line of ``initial_seconds_per_token``. What it says is
    scaled by a decayed ratio over steps that are mostly prefill.
    """

    def __init__(
        self,
        initial_seconds_per_token: float = 0.0002,
        decay: float = 0.95,
        curve: Callable[[int], float] | None = None,
    ) -> None:
        self._curve = curve or (lambda tokens: initial_seconds_per_token * tokens)
        self._decay = decay
        self._expected = 0.0
        self._seconds = 0.0

    def observe(self, prefilled: int, tokens: int, seconds: float) -> None:
        """Learn from a step if at least half of its tokens, and 16 of them, were prefill."""
        if prefilled >= 16 and 2 * prefilled >= tokens:
            self._expected = self._expected * self._decay + self._curve(prefilled)
            self._seconds = self._seconds * self._decay + seconds

    def __call__(self, tokens: int) -> float:
        """Return the estimated seconds for ``tokens`` tokens."""
        scale = self._seconds / self._expected if self._expected else 1.0
        return scale * self._curve(tokens)
