"""Guessed tokens in a step: a decode computes them along, and as many as come true are output.

A guess never changes a token: the backend draws every token as it would have without, and what was
guessed otherwise is dropped. Only the number of steps that a turn takes depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from agentrt.scheduling.book import Book
from agentrt.scheduling.plan import FinishReason, SeqSlice, StepPlan, StepResult, TokenSource
from agentrt.scheduling.policy import Listener
from agentrt.scheduling.views import TurnView

__all__ = ["DraftAsk", "DraftDesk", "Drafter"]


class DraftAsk(NamedTuple):
    """A turn that decodes: its tokens so far, and how many guesses it has use for, at least 1."""

    turn_id: str
    tokens: TokenSource
    limit: int


class Drafter(Protocol):
    """Guesses what turns will say next. Called by the scheduler only, in its thread."""

    def propose(
        self, asks: Sequence[DraftAsk], decodes: int, budget: int
    ) -> Mapping[str, list[int]]:
        """Return guesses by turn id, at most ``limit`` for each and ``budget`` in all.

        ``decodes`` is how many turns the step decodes.
        """
        ...

    def observe(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """Note what became of a step, the guesses in it, and its duration."""
        ...

    def closed(self, turn_id: str) -> None:
        """Forget a turn; unknown ids are ignored."""
        ...


class DraftDesk(Listener):
    """Puts a drafter's guesses into steps: within the token budget, and on pages of the turn."""

    def __init__(self, drafter: Drafter, book: Book) -> None:
        self.drafter = drafter
        self._book = book

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Let the drafter forget a turn that has ended."""
        self.drafter.closed(turn.turn_id)

    def extend(self, decodes: Sequence[SeqSlice], budget: int) -> int:
        """Lengthen decodes by guesses; return the budget that is left.

        Guesses take half of ``budget`` at most, so that no prefill waits for them.
        """
        turns = self._book.turns
        asks = []
        for piece in decodes:
            request, output = turns[piece.turn_id].request, turns[piece.turn_id].output
            # The token that is drawn after the last guess counts, too.
            if request.max_output - output > 1:
                asks.append(
                    DraftAsk(piece.turn_id, request.tokens, request.max_output - output - 1)
                )
        if not asks or budget < 2:
            return budget
        drafts = self.drafter.propose(asks, len(decodes), budget // 2)
        for piece in decodes:
            draft = drafts.get(piece.turn_id)
            if draft:
                budget -= self._lengthen(piece, draft)
        return budget

    def _lengthen(self, piece: SeqSlice, draft: list[int]) -> int:
        """Give one decode what of its draft finds room; return how many tokens that are."""
        turn, book = self._book.turns[piece.turn_id], self._book
        if turn.lease is None:
            return 0
        needed = book.pages(piece.start + 1 + len(draft))
        extra = needed - len(turn.lease.pages)
        # Nobody gives way to a guess: each running turn keeps a page to go on with.
        if extra > 0 and book.kv.available() - extra >= len(book.running):
            book.kv.extend(turn.lease, needed)
        room = len(turn.lease.pages) * book.kv.page_size - piece.start - 1
        piece.draft = draft[: max(room, 0)]
        piece.count += len(piece.draft)
        piece.pages = turn.lease.pages
        return len(piece.draft)
