"""Deciding a step: continue what runs, decodes first, then start what waits."""

from __future__ import annotations

from agentrt.errors import InternalError
from agentrt.scheduling.book import Book
from agentrt.scheduling.plan import SeqSlice, TurnAdmitted, TurnPreempted
from agentrt.scheduling.state import TurnState

__all__ = ["Planner"]


class Planner:
    """Chooses slices from a book; the only one that moves turns between its queues."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def continue_running(self, now: float) -> list[SeqSlice]:
        """Plan every decode, then prefill chunks of turns that have started."""
        decodes = [turn for turn in self._book.running if turn.decoding]
        for turn in decodes:
            if turn.lease is not None:
                self._cover(turn, turn.computed + 1, now)
        slices: list[SeqSlice] = []
        budget = self._book.config.token_budget
        for decoding in (True, False):
            for turn in self._book.running:
                if turn.decoding is decoding and budget > 0:
                    piece = self._slice(turn, budget)
                    budget -= piece.count
                    slices.append(piece)
        return slices

    def _slice(self, turn: TurnState, budget: int) -> SeqSlice:
        if turn.lease is None:
            raise InternalError(f"Turn {turn.turn_id} runs without pages.")
        left = turn.length - turn.computed
        count = min(left, budget)
        return SeqSlice(turn.turn_id, turn.computed, count, turn.lease.pages, count == left)

    def _cover(self, turn: TurnState, tokens: int, now: float) -> None:
        """Get pages for ``tokens`` tokens, preempting the lowest-ranked turns where it must be."""
        book = self._book
        needed = book.pages(tokens)
        while turn.lease is not None and len(turn.lease.pages) < needed:
            if book.kv.extend(turn.lease, needed):
                return
            victim = max(book.running, key=lambda other: book.rank(other, now))
            if len(book.running) > 1:
                self._preempt(victim, now)
            elif not book.break_pin(turn.state, now):
                raise InternalError(f"Turn {turn.turn_id} fits the pool but finds no page.")

    def _preempt(self, turn: TurnState, now: float) -> None:
        """Send a running turn back to the queue; what it computed stays cached while it can."""
        book = self._book
        turn.spend(now)
        book.publish(turn, turn.computed, now)
        book.drop_lease(turn, now)
        turn.preemptions += 1
        turn.state.waiting_turns += 1
        book.running.remove(turn)
        book.waiting.append(turn)
        book.counters.preemptions += 1
        book.events.append(TurnPreempted(turn.turn_id, now))
        book.unblock()

    def admit(self, slices: list[SeqSlice], budget: int, now: float) -> None:
        """Start waiting turns, best rank first, until one does not fit."""
        book = self._book
        if book.blocked_until is not None and now < book.blocked_until and book.running:
            return
        while book.waiting and budget > 0 and len(book.running) < book.config.max_seqs:
            head = min(book.waiting, key=lambda turn: book.rank(turn, now))
            if not self._start(head, now):
                deadline = book.next_deadline(now)
                book.blocked_until = deadline if deadline is not None else float("inf")
                return
            piece = self._slice(head, budget)
            budget -= piece.count
            slices.append(piece)

    def _start(self, turn: TurnState, now: float) -> bool:
        """Lease pages for a waiting turn and let it run; False if it does not fit now."""
        book = self._book
        page = book.kv.page_size
        keys = turn.request.tokens.page_keys(page, (turn.length - 1) // page)
        pages = book.pages(self._reserved_tokens(turn))
        # Room for the next page of everything that runs: else a start is a preemption at once.
        spare = len(book.running) if book.config.reserve == "prompt" else 0
        lease = book.kv.acquire(turn.state.owner, keys, pages, now, spare=spare)
        fresh = pages - book.kv.match(keys) + spare if lease is None else 0
        while lease is None:
            if not self._may_break(turn, fresh, now) or not book.break_pin(turn.state, now):
                return False
            lease = book.kv.acquire(turn.state.owner, keys, pages, now, spare=spare)
        turn.spend(now)
        turn.lease = lease
        turn.computed = lease.shared * page
        turn.prefill_end = turn.length
        book.waiting.remove(turn)
        book.running.append(turn)
        turn.state.waiting_turns -= 1
        self._note_admission(turn, now)
        return True

    def _note_admission(self, turn: TurnState, now: float) -> None:
        book = self._book
        context = turn.state
        evicted = context.pin is None and turn.computed + book.kv.page_size <= context.length
        book.pins.end(context, "handed_off", now)
        book.events.append(TurnAdmitted(turn.turn_id, now, turn.computed))
        if turn.admitted is not None:
            return
        turn.admitted = now
        turn.cached = turn.computed
        book.counters.cached_tokens += turn.computed
        book.counters.longest_wait = max(book.counters.longest_wait, now - turn.submitted)
        if context.last_end is not None:
            book.policy.retention.admitted(now - turn.submitted, evicted)

    def _reserved_tokens(self, turn: TurnState) -> int:
        if self._book.config.reserve == "output":
            return turn.prompt_tokens + turn.request.max_output
        return turn.length + 1

    def _may_break(self, turn: TurnState, fresh: int, now: float) -> bool:
        """Live pins yield when nothing else can run, or to an aged turn that then has its pages.

        A policy may have them yield to any head, as it was published.
        """
        book = self._book
        if book.policy.pin_break == "head" or not book.running:
            return True
        return book.aged(turn, now) and book.kv.available() + book.pins.pages >= fresh

    def repetitions(self, slices: list[SeqSlice], horizon: int) -> int:
        """How often a step of decodes may be repeated without a new decision."""
        repeat = horizon
        page = self._book.kv.page_size
        for piece in slices:
            turn = self._book.turns[piece.turn_id]
            if not piece.sample or piece.count > 1 or not turn.decoding:
                return 1
            room = len(piece.pages) * page - turn.computed
            repeat = min(repeat, turn.request.max_output - turn.output, room)
        return max(repeat, 1)
