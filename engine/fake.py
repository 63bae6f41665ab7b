"""A backend without a model: its tokens are a pure function of the tokens before them.

It keeps a make-believe KV cache: every slot of every page remembers the whole prefix it was
computed for, as a hash. A slice that starts behind cached tokens must find exactly its own prefix
in its pages, or the step raises. So it also proves that scheduler and pages never hand a turn
another turn's state, or state that was never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentrt.engine.backend import EngineSample, TurnBackend
from agentrt.engine.choices import ChoiceCursor, ChoiceTrie, check_encoded
from agentrt.engine.params import SamplingParams
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

__all__ = ["FakeTurnBackend", "fake_output"]

_MASK = 2**64 - 1


def _advance(state: int, token: int) -> int:
    """Return the hash of a prefix that grew by ``token``."""
    state = ((state ^ (token + 1)) * 0x100000001B3 + 0x9E3779B97F4A7C15) & _MASK
    return state ^ (state >> 29)


def fake_output(prompt: Sequence[int], count: int, vocab_size: int) -> list[int]:
    """Return the ``count`` tokens that a :class:`FakeTurnBackend` answers ``prompt`` with."""
    state = 0
    for token in prompt:
        state = _advance(state, token)
    output: list[int] = []
    for _ in range(count):
        output.append((state >> 7) % vocab_size)
        state = _advance(state, output[-1])
    return output


@dataclass(slots=True)
class _FakeTurn:
    tokens: list[int]
    forced: Sequence[int] | None
    choices: ChoiceCursor | None
    emitted: int = 0

    def next(self, free: int, vocab_size: int) -> int:
        """Return the token that comes out where ``free`` is a number to choose by."""
        if self.forced is not None:
            return self.forced[self.emitted]
        if self.choices is not None:
            return self.choices.allowed[free % len(self.choices.allowed)]
        return free % vocab_size

    def take(self, token: int) -> bool:
        """Append an output token; say whether the turn ends with it."""
        self.emitted += 1
        self.tokens.append(token)
        if self.forced is not None:
            return self.emitted == len(self.forced)
        if self.choices is None:
            return False
        self.choices.push(token)
        return self.choices.done


@dataclass(slots=True)
class FakeTurnBackend(TurnBackend):
    """Deterministic tokens below ``vocab_size``. ``before`` sees each plan first and may raise.

    Of the sampling nothing counts but the choices.
    """

    page_size: int
    vocab_size: int = 50
    before: Callable[[StepPlan], None] | None = None
    steps: int = 0
    restarts: int = 0
    _turns: dict[str, _FakeTurn] = field(default_factory=dict)
    _slots: dict[int, int] = field(default_factory=dict)

    def open(
        self,
        turn_id: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        forced: Sequence[int] | None = None,
        choices: ChoiceTrie | None = None,
    ) -> None:
        """Make a turn known.

        Raises:
            InvalidRequest: a token is not below ``vocab_size``.
            InternalError: the sampling has choices, but their tokens are missing.
        """
        check_encoded(sampling.choices, choices)
        closed = () if choices is None else choices.tokens()
        self._check((*prompt, *(forced or ()), *closed))
        cursor = None if choices is None else ChoiceCursor(choices)
        self._turns[turn_id] = _FakeTurn(list(prompt), forced, cursor)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace the end of a prompt.

        Raises:
            InvalidRequest: a token is not below ``vocab_size``.
        """
        self._check(tokens)
        self._turns[turn_id].tokens[keep:] = tokens

    def run(self, plan: StepPlan) -> StepResult:
        """Advance every slice's prefix, sample where asked.

        Raises:
            InternalError: a page does not hold the prefix that the slice builds on.
        """
        if self.before is not None:
            self.before(plan)
        self.steps += 1
        samples: dict[str, Sample] = {}
        for piece in plan.slices:
            state = self._compute(piece)
            if piece.sample:
                samples[piece.turn_id] = self._sample(piece, state)
        return StepResult(samples)

    def _check(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"Token {token} is not in the vocabulary.",
                    remedy=f"Use tokens from 0 to {self.vocab_size - 1}.",
                )

    def close(self, turn_id: str) -> None:
        """Forget a turn."""
        self._turns.pop(turn_id, None)

    def restart(self) -> None:
        """Forget what the pages hold."""
        self.restarts += 1
        self._slots.clear()

    def _compute(self, piece: SeqSlice) -> int:
        tokens = self._turns[piece.turn_id].tokens
        state = 0
        for position in range(piece.start + piece.count):
            state = _advance(state, tokens[position])
            page, offset = divmod(position, self.page_size)
            slot = piece.pages[page] * self.page_size + offset
            if position >= piece.start:
                self._slots[slot] = state
            elif self._slots.get(slot) != state:
                raise InternalError(
                    f"Turn {piece.turn_id}: page {piece.pages[page]} does not hold its "
                    f"position {position}."
                )
        return state

    def _sample(self, piece: SeqSlice, state: int) -> Sample:
        turn = self._turns[piece.turn_id]
        if piece.start + piece.count != len(turn.tokens):
            raise InternalError(f"Turn {piece.turn_id} samples before its newest token.")
        token = turn.next(state >> 7, self.vocab_size)
        return EngineSample((token,), "stop" if turn.take(token) else None)

    @property
    def open_turns(self) -> int:
        """How many turns are known."""
        return len(self._turns)
