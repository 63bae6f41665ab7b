"""A backend without a model: its tokens are a pure function of the tokens before them.

It keeps a make-believe KV cache: every slot of every page remembers the whole prefix it was
computed for, as a hash. A slice that starts behind cached tokens must find exactly its own prefix
in its pages, or the step raises. So it also proves that scheduler and pages never hand a turn
another turn's state, or state that was never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentrt.engine.backend import EngineSample, StepHandle, TurnBackend
from agentrt.engine.choices import ChoiceCursor, ChoiceTrie, check_encoded
from agentrt.engine.grammar import check_compiled
from agentrt.engine.params import SamplingParams
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.matcher import CompiledGrammar, GrammarCursor

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
    grammar: GrammarCursor | None = None
    begin: int = 0
    """The hash of no tokens: another one for each adapter."""
    emitted: int = 0

    def next(self, free: int, vocab_size: int) -> int:
        """Return the token that comes out where ``free`` is a number to choose by."""
        if self.forced is not None:
            return self.forced[self.emitted]
        if self.choices is not None:
            return self.choices.allowed[free % len(self.choices.allowed)]
        if self.grammar is not None:
            allowed = _allowed(self.grammar.mask(), vocab_size)
            return (
                free % vocab_size if free % vocab_size in allowed else allowed[free % len(allowed)]
            )
        return free % vocab_size

    def take(self, token: int) -> bool:
        """Append an output token; say whether the turn ends with it."""
        self.emitted += 1
        self.tokens.append(token)
        if self.forced is not None:
            return self.emitted == len(self.forced)
        if self.grammar is not None:
            return not self.grammar.push(token) or self.grammar.done
        if self.choices is None:
            return False
        self.choices.push(token)
        return self.choices.done


def _allowed(mask: bytes, vocab_size: int) -> list[int]:
    """Return the tokens whose bits are set."""
    bits = int.from_bytes(mask, "little")
    return [token for token in range(vocab_size) if bits >> token & 1]


@dataclass(frozen=True, slots=True, eq=False)
class _Done(StepHandle):
    result: StepResult


@dataclass(slots=True)
class FakeTurnBackend(TurnBackend):
    """Deterministic tokens below ``vocab_size``. ``before`` sees each plan first and may raise.

    Of the sampling nothing counts but choices and grammar.
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
        grammar: CompiledGrammar | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Make a turn known.

        Raises:
            InvalidRequest: a token is not below ``vocab_size``.
            InternalError: choices or grammar are not there in the form that the model needs.
        """
        check_encoded(sampling.choices, choices)
        check_compiled(sampling.grammar, grammar)
        closed = () if choices is None else choices.tokens()
        self._check((*prompt, *(forced or ()), *closed))
        cursor = None if choices is None else ChoiceCursor(choices)
        follow = None if grammar is None else grammar.start()
        begin = 0 if adapter is None else _advance(0, -adapter.namespace)
        self._turns[turn_id] = _FakeTurn(list(prompt), forced, cursor, follow, begin)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace the end of a prompt.

        Raises:
            InvalidRequest: a token is not below ``vocab_size``.
        """
        self._check(tokens)
        self._turns[turn_id].tokens[keep:] = tokens

    def launch(self, plan: StepPlan) -> StepHandle:
        """Advance every slice's prefix, sample where asked.

        Raises:
            InternalError: a page does not hold the prefix that the slice builds on.
        """
        if self.before is not None:
            self.before(plan)
        self.steps += 1
        samples: dict[str, Sample] = {}
        for piece in plan.slices:
            states = self._compute(piece)
            if piece.sample:
                samples[piece.turn_id] = self._sample(piece, states)
        return _Done(plan, StepResult(samples))

    def wait(self, handle: StepHandle) -> StepResult:
        """Return what launching has found."""
        assert isinstance(handle, _Done)
        return handle.result

    def follows(self, plan: StepPlan) -> bool:
        """Say whether all of a plan are plain decodes of turns that are free to say anything."""
        turns = (self._turns[piece.turn_id] for piece in plan.slices)
        decodes = all(piece.count == 1 and piece.sample for piece in plan.slices)
        return decodes and all(turn.choices is None and turn.grammar is None for turn in turns)

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

    def _compute(self, piece: SeqSlice) -> list[int]:
        """Write the slice's slots; return the states of its newest token and of its draft."""
        turn = self._turns[piece.turn_id]
        tokens = [*turn.tokens, *piece.draft]
        state = turn.begin
        states: list[int] = []
        for position in range(piece.start + piece.count):
            state = _advance(state, tokens[position])
            states.append(state)
            page, offset = divmod(position, self.page_size)
            slot = piece.pages[page] * self.page_size + offset
            if position >= piece.start:
                self._slots[slot] = state
            elif self._slots.get(slot) != state:
                raise InternalError(
                    f"Turn {piece.turn_id}: page {piece.pages[page]} does not hold its "
                    f"position {position}."
                )
        return states[-1 - len(piece.draft) :]

    def _sample(self, piece: SeqSlice, states: Sequence[int]) -> Sample:
        turn = self._turns[piece.turn_id]
        if piece.start + piece.count - len(piece.draft) != len(turn.tokens):
            raise InternalError(f"Turn {piece.turn_id} samples before its newest token.")
        tokens: list[int] = []
        for state, guess in zip(states, (*piece.draft, None), strict=True):
            tokens.append(turn.next(state >> 7, self.vocab_size))
            if turn.take(tokens[-1]):
                return EngineSample(tuple(tokens), "stop")
            if tokens[-1] != guess:
                break
        return EngineSample(tuple(tokens))

    @property
    def open_turns(self) -> int:
        """How many turns are known."""
        return len(self._turns)
