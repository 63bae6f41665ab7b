"""Whether the step after a step of decodes is known before the latter's tokens are.

A driver with a device launches it then at once, so that the device never waits for the host. What
the tokens themselves decide, a turn that stops, is seen one step late: such a turn is in the step
already, what it computes there is dropped, and its pages go when that step is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.scheduling.book import Book
from agentrt.scheduling.plan import SeqSlice, StepPlan
from agentrt.scheduling.state import TurnState

__all__ = ["Follower"]


class Follower:
    """Continues steps by one token a turn, where a planner could do nothing else."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def slices(self, plan: StepPlan, now: float) -> tuple[SeqSlice, ...] | None:
        """Return the slices after ``plan``, which is under way; None if a plan must decide them.

        Turns that are known to end in ``plan`` are left out. Pages that the others need are taken,
        if there are enough for all.
        """
        if plan.repeat != 1 or self._due(now):
            return None
        turns = self._turns(plan)
        if turns is None:
            return None
        going = [turn for turn in turns if not _ends(turn)]
        if not going or (self._book.waiting and (len(going) < len(turns) or self._starts(now))):
            return None
        if not self._cover(going):
            return None
        slices = []
        for turn in going:
            assert turn.lease is not None  # it has just been covered
            slices.append(SeqSlice(turn.turn_id, turn.computed + 1, 1, turn.lease.pages, True))
        return tuple(slices)

    def _turns(self, plan: StepPlan) -> list[TurnState] | None:
        """Return the turns of a step of decodes; None if it is none, or others can run now."""
        turns = []
        for piece in plan.slices:
            turn = self._book.turns.get(piece.turn_id)
            if turn is None or piece.count != 1 or turn.computed < turn.prefill_end:
                return None
            turns.append(turn)
        ready = sum(turn.loading is None for turn in self._book.running)
        return turns if ready == len(turns) else None

    def _due(self, now: float) -> bool:
        """Whether a plan would do something else than go on: a copy, or computing ahead."""
        book = self._book
        if book.transfers is not None and book.transfers.waiting:
            return True
        due = None if book.prefetcher is None or book.waiting else book.prefetcher.next_due()
        return (due is not None and due <= now) or (not book.waiting and book.opened.due())

    def _starts(self, now: float) -> bool:
        """Whether the head of the queue might start, as ``Planner.admit`` sees it."""
        until = self._book.blocked_until
        return until is None or now >= until

    def _cover(self, turns: Sequence[TurnState]) -> bool:
        """Get the page that each turn writes to; none are taken where they do not suffice."""
        book = self._book
        short = [
            (turn.lease, needed)
            for turn in turns
            if turn.lease is not None
            and (needed := book.pages(turn.computed + 2)) > len(turn.lease.pages)
        ]
        if sum(needed - len(lease.pages) for lease, needed in short) > book.kv.available():
            return False
        return all(book.kv.extend(lease, needed) for lease, needed in short)


def _ends(turn: TurnState) -> bool:
    """Whether a turn's step under way is known to be its last."""
    over = turn.ended is not None or turn.cancelled
    return over or turn.output + 1 >= turn.request.max_output
