"""A backend without a model: deterministic tokens, virtual step time. For tests and tries."""

from __future__ import annotations

from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

__all__ = ["FakeBackend"]


class FakeBackend:
    """Samples ``(start + count) % vocabulary``; a token takes ``seconds_per_token`` of ``now``."""

    def __init__(self, *, vocabulary: int = 1000, seconds_per_token: float = 0.001) -> None:
        self.now = 0.0
        self._vocabulary = vocabulary
        self._seconds_per_token = seconds_per_token

    def run(self, plan: StepPlan) -> StepResult:
        """Advance ``now`` and sample every slice that asks for it, once a repetition."""
        self.now += plan.tokens * plan.repeat * self._seconds_per_token
        samples: dict[str, Sample] = {}
        for piece in plan.slices:
            if piece.sample:
                first = piece.start + piece.count - len(piece.draft)
                count = plan.repeat + self._right(piece, first)
                tokens = [(first + i) % self._vocabulary for i in range(count)]
                samples[piece.turn_id] = Sample(tokens)
        return StepResult(samples)

    def _right(self, piece: SeqSlice, first: int) -> int:
        """Return how many guesses are what is sampled."""
        for index, guess in enumerate(piece.draft):
            if guess != (first + index) % self._vocabulary:
                return index
        return len(piece.draft)
