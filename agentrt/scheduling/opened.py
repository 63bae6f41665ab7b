"""Turns that are opened before their input is complete: computed ahead with what nobody else needs.

An open turn is no turn yet: policies do not see it and nothing waits for it. It takes what is left
of a step's tokens while no turn waits, publishes whole pages as its context's, and gives its lease
up for anyone who needs pages. Sealing it hands in the real turn, which finds those pages like any
other cached prefix. So it can save time, and never change or delay anybody's answer.

    tokens   [0, lease.shared * page)   published pages, on ``lease``
             [.., computed)             in KV on private pages
             [computed, length)         to be computed, except what is not a whole page yet
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.kv import KVCache, KVLease
from agentrt.scheduling.plan import OpenRequest, SeqSlice

__all__ = ["OpenTurns"]


@dataclass(slots=True, eq=False)
class _Open:
    """``valid`` is how far the tokens of the slice that is under way still are what they were."""

    request: OpenRequest
    lease: KVLease | None = None
    computed: int = 0
    valid: float = math.inf
    broken: bool = False


class OpenTurns:
    """The open turns, oldest first, and the tokens computed for them since the start."""

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv
        self._open: dict[str, _Open] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._open

    # -- from outside --------------------------------------------------------------------------

    def add(self, request: OpenRequest) -> None:
        """Open a turn.

        Raises:
            InvalidRequest: the id is in use.
        """
        if request.turn_id in self._open:
            raise InvalidRequest(
                f"The turn {request.turn_id} is open already.", remedy="Use a new turn id."
            )
        self._open[request.turn_id] = _Open(request)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int], now: float) -> None:
        """Replace what follows the first ``keep`` tokens; unknown ids are ignored."""
        turn = self._open.get(turn_id)
        if turn is None:
            return
        turn.request.tokens.revise(keep, tokens)
        turn.valid = min(turn.valid, keep)
        if keep >= turn.computed:
            return
        if turn.lease is not None and keep // self._kv.page_size < turn.lease.shared:
            # What is published cannot be written again: go back to what still agrees.
            self._let_go(turn, now)
        else:
            turn.computed = keep

    def take(self, turn_id: str) -> KVLease | None:
        """End an open turn; the caller gets its lease, if it has one, and what is published on it.

        Nothing of a turn that is not known.
        """
        turn = self._open.pop(turn_id, None)
        return None if turn is None else turn.lease

    def close(self, turn_id: str, now: float) -> None:
        """End an open turn; what was computed stays cached."""
        turn = self._open.pop(turn_id, None)
        if turn is not None:
            self._let_go(turn, now)

    def end(self, program_id: str, now: float, context: str | None = None) -> None:
        """End the open turns of a program, or of one of its contexts."""
        for turn_id, turn in list(self._open.items()):
            request = turn.request
            if request.program_id == program_id and context in (None, request.context):
                self.close(turn_id, now)
                self._kv.end_owner(request.owner)

    # -- steps ---------------------------------------------------------------------------------

    def plan(self, slices: list[SeqSlice], budget: int, seats: int, spare: int, now: float) -> None:
        """Add slices for what can be computed ahead.

        Args:
            slices: of the step so far.
            budget: tokens that it may have yet.
            seats: slices that it may have yet.
            spare: pages that must stay available.
            now: the time.
        """
        for turn in self._open.values():
            if seats <= 0 or budget <= 0:
                return
            piece = self._piece(turn, budget, spare, now)
            if piece is not None:
                slices.append(piece)
                budget -= piece.count
                seats -= 1

    def due(self) -> bool:
        """Whether something is left to be computed of an open turn."""
        return any(
            not turn.broken and turn.computed < self._whole(turn) for turn in self._open.values()
        )

    def _whole(self, turn: _Open) -> int:
        """Return how many tokens can be computed ahead: whole pages.

        Of the newest token only the sealed turn computes anything: it has to sample from it.
        """
        page = self._kv.page_size
        return (len(turn.request.tokens) - 1) // page * page

    def _piece(self, turn: _Open, budget: int, spare: int, now: float) -> SeqSlice | None:
        page, whole = self._kv.page_size, self._whole(turn)
        if turn.broken or turn.computed >= whole:
            return None
        lease = turn.lease or self._start(turn, whole // page, now)
        room = max(self._kv.available() - spare, 0) + len(lease.pages)
        end = min(whole, turn.computed + budget, room * page)
        if end <= turn.computed or not self._kv.extend(lease, -(-end // page)):
            return None
        turn.valid = math.inf
        request = turn.request
        return SeqSlice(request.turn_id, turn.computed, end - turn.computed, lease.pages, False)

    def _start(self, turn: _Open, pages: int, now: float) -> KVLease:
        """Lease what is cached of a turn's tokens; it may be nothing, and always can be had."""
        request = turn.request
        keys = request.tokens.page_keys(self._kv.page_size, pages)
        lease = self._kv.acquire(request.owner, keys, self._kv.match(keys), now)
        if lease is None:
            raise InternalError(f"Cached pages of {request.turn_id} cannot be leased.")
        turn.lease = lease
        turn.computed = lease.shared * self._kv.page_size
        return lease

    def advance(self, piece: SeqSlice, *, failed: bool, now: float) -> int:
        """Account for a slice that was run; return how many of its tokens count.

        What ``failed`` is not tried again.
        """
        turn = self._open.get(piece.turn_id)
        if turn is None or turn.lease is None or piece.pages is not turn.lease.pages:
            return 0
        if failed:
            turn.broken = True
            self._let_go(turn, now)
            return 0
        end = int(min(piece.start + piece.count, turn.valid))
        done = max(end - turn.computed, 0) if piece.start <= turn.computed else 0
        turn.computed += done
        self.tokens += done
        full = turn.computed // self._kv.page_size
        if full > turn.lease.shared:
            keys = turn.request.tokens.page_keys(self._kv.page_size, full)
            self._kv.publish(turn.lease, keys, now)
        return done

    def give_way(self, now: float) -> bool:
        """Let go of one open turn's pages for somebody who needs some; False if none has any."""
        for turn in reversed(self._open.values()):
            if turn.lease is not None:
                self._let_go(turn, now)
                return True
        return False

    def let_go(self, now: float) -> None:
        """Let go of the pages of all open turns: they are computed again."""
        while self.give_way(now):
            pass

    def _let_go(self, turn: _Open, now: float) -> None:
        turn.computed = 0
        if turn.lease is not None:
            self._kv.release(turn.lease, now)
            turn.lease = None

    def leases(self) -> Collection[KVLease]:
        """Return the leases that open turns hold."""
        return [turn.lease for turn in self._open.values() if turn.lease is not None]
