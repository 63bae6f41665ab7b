"""Deciding a step: continue what runs, decodes first, then start what waits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import closing

from agentrt.errors import InternalError
from agentrt.scheduling.book import Book
from agentrt.scheduling.drafting import DraftDesk
from agentrt.scheduling.plan import SeqSlice, TokenSource, TurnAdmitted, TurnPreempted
from agentrt.scheduling.policy import Verdict
from agentrt.scheduling.pool import Pool
from agentrt.scheduling.state import TurnState

__all__ = ["Planner"]


class Planner:
    """Chooses slices from a book; the only one that moves turns between its queues."""

    def __init__(self, book: Book, drafts: DraftDesk | None = None) -> None:
        self._book = book
        self._drafts = drafts
        self._pool = Pool(book)
        for listener in book.tell.opened:
            listener.opened(self._pool)

    def continue_running(self, now: float) -> tuple[list[SeqSlice], int]:
        """Plan every decode, then prefill chunks of turns that have started.

        Returns the slices and what is left of the token budget.
        """
        book = self._book
        if book.config.reserve == "prompt":
            self._cover_decodes(now)
        slices: list[SeqSlice] = []
        prefills: list[TurnState] = []
        for turn in book.running:
            if turn.loading is not None:
                continue
            if turn.computed < turn.prefill_end:
                prefills.append(turn)
            elif turn.lease is None:
                raise InternalError(f"Turn {turn.turn_id} runs without pages.")
            else:
                # A decoding turn lacks one token; fewer turns run than a step has tokens.
                pages = turn.lease.pages
                slices.append(SeqSlice(turn.request.turn_id, turn.computed, 1, pages, True))
        if book.policy.prefill_order is not None:
            prefills.sort(key=book.policy.prefill_order)
        budget = book.config.token_budget - len(slices)
        if self._drafts is not None:
            budget = self._drafts.extend(slices, budget)
        kept = self._kept(budget, now) if prefills else 0
        budget -= kept
        for turn in prefills:
            if budget <= 0:
                break
            budget = self._run(turn, slices, budget)
        return slices, budget + kept

    def _kept(self, budget: int, now: float) -> int:
        """Return how many tokens prefills under way leave to the head of the queue: their share.

        Only if that suffices to prefill it in this step, which is then short by as much as it does
        not need: if long newcomers got it, all that have started would wait for each other.
        """
        book = self._book
        room = int(book.config.newcomer_share * budget)
        blocked = book.blocked_until is not None and now < book.blocked_until
        if not room or not book.waiting or blocked or not self._has_seat():
            return 0
        with closing(book.waiting.ranked(now)) as ranked:
            head = next(iter(ranked), None)
        missing = 0 if head is None else self._missing(head.request.tokens)
        # What has started goes on by one token at least, however many come.
        kept = min(room, budget - 1)
        return kept if missing <= kept else 0

    def welcomes(self, tokens: TokenSource) -> bool:
        """Whether a turn that came now would find a seat, no queue, and a share that suffices."""
        config = self._book.config
        room = int(config.newcomer_share * config.token_budget)
        return not self._book.waiting and self._has_seat() and 0 < self._missing(tokens) <= room

    def _missing(self, tokens: TokenSource) -> int:
        """Return how many tokens of a prompt are not cached."""
        page = self._book.kv.page_size
        keys = tokens.page_keys(page, (len(tokens) - 1) // page)
        return len(tokens) - self._book.kv.match(keys) * page

    def _slice(self, turn: TurnState, budget: int) -> SeqSlice:
        if turn.lease is None:
            raise InternalError(f"Turn {turn.turn_id} runs without pages.")
        left = turn.length - turn.computed
        count = min(left, budget)
        return SeqSlice(turn.turn_id, turn.computed, count, turn.lease.pages, count == left)

    def _cover_decodes(self, now: float) -> None:
        """Get the page that each decode writes to; where pages were reserved it is there."""
        page = self._book.kv.page_size
        short = [
            turn
            for turn in self._book.running
            if turn.lease is not None and len(turn.lease.pages) * page <= turn.computed
        ]
        for turn in short:
            if turn.decoding and turn.loading is None and turn.lease is not None:
                self._cover(turn, turn.computed + 1, now)

    def _cover(self, turn: TurnState, tokens: int, now: float) -> None:
        """Get pages for ``tokens`` tokens, preempting the lowest-ranked turns where it must be."""
        book = self._book
        needed = book.pages(tokens)
        while turn.lease is not None and len(turn.lease.pages) < needed:
            if book.kv.extend(turn.lease, needed):
                return
            if book.give_way(now):
                continue
            if len(book.running) > 1:
                movable = [other for other in book.running if other.loading is None]
                victim = max(movable, key=lambda other: book.waiting.rank(other, now))
                self._preempt(victim, now)
            elif not book.break_pin(turn.state, now):
                if not book.transfers:
                    raise InternalError(f"Turn {turn.turn_id} fits the pool but finds no page.")
                # Copies to the host hold the rest of the pool; it goes on when they are done.
                self._preempt(turn, now)

    def _preempt(self, turn: TurnState, now: float) -> None:
        """Send a running turn back to the queue; what it computed stays cached while it can."""
        book = self._book
        turn.spend(now)
        for listener in book.tell.preempted:
            listener.preempted(turn, now)
        book.publish(turn, turn.computed, now)
        book.drop_lease(turn, now)
        turn.computed = 0
        turn.preemptions += 1
        book.running.remove(turn)
        book.wait(turn)
        book.counters.preemptions += 1
        book.events.append(TurnPreempted(turn.turn_id, now))
        book.unblock()

    def preempt_all(self, now: float) -> None:
        """Send every running turn back to the queue; what waited for a copy waits no longer."""
        for turn in list(self._book.running):
            turn.loading = None
            if turn.cancelled:
                self._book.finish(turn, "cancelled", now)
            else:
                self._preempt(turn, now)

    def admit(self, slices: list[SeqSlice], budget: int, now: float) -> None:
        """Start waiting turns, best rank first, until one does not fit or must wait."""
        book = self._book
        if book.blocked_until is not None and now < book.blocked_until and book.running:
            return
        first: TurnState | None = None
        with closing(book.waiting.ranked(now)) as ranked:
            for turn in ranked:
                if budget <= 0:
                    return
                verdict = self._verdict(turn, now)
                if verdict == "hold":
                    continue
                first = first or turn
                if verdict == "skip":
                    continue
                if verdict == "wait" or not self._enter(turn, slices, now):
                    break
                if book.policy.preempts is not None:
                    budget = book.config.token_budget - sum(piece.count for piece in slices)
                budget = self._run(turn, slices, budget)
        if first is not None and not book.running and self._start(first, now):
            # Something always runs, whatever a policy would hold back.
            self._run(first, slices, budget)
        elif book.waiting:
            deadline = book.next_deadline(now)
            book.blocked_until = deadline if deadline is not None else math.inf

    def compute_ahead(self, slices: list[SeqSlice], now: float) -> None:
        """Plan for open turns with what is left of a step, while no turn waits."""
        book = self._book
        if book.opened and not book.waiting:
            budget = book.config.token_budget - sum(piece.count for piece in slices)
            running = len(book.running)
            book.opened.plan(slices, budget, book.config.max_seqs - len(slices), running, now)

    def _run(self, turn: TurnState, slices: list[SeqSlice], budget: int) -> int:
        """Plan the first slice of a turn that has just started; return the budget that is left."""
        if turn.loading is not None:
            return budget
        piece = self._slice(turn, budget)
        slices.append(piece)
        return budget - piece.count

    def _verdict(self, turn: TurnState, now: float) -> Verdict:
        if self._book.waiting.aged(turn, now):
            return "start"
        if self._book.on_its_way(turn):
            return "hold"
        return self._book.policy.admission.verdict(turn, self._pool, now)

    def _enter(self, turn: TurnState, slices: list[SeqSlice], now: float) -> bool:
        """Start a turn, if need be in the place of less urgent ones, whose slices go."""
        while not (self._has_seat() and self._start(turn, now)):
            victim = self._less_urgent(turn, now)
            if victim is None:
                return False
            victim.displaced = True
            self._preempt(victim, now)
            slices[:] = [piece for piece in slices if piece.turn_id != victim.turn_id]
        return True

    def _has_seat(self) -> bool:
        return len(self._book.running) < self._book.config.max_seqs

    def _less_urgent(self, turn: TurnState, now: float) -> TurnState | None:
        """Find who gives way to ``turn``: each does at most once, and none that has aged."""
        book, preempts = self._book, self._book.policy.preempts
        if preempts is None:
            return None
        giving = [
            other
            for other in book.running
            if other.loading is None
            and not (other.displaced or book.waiting.aged(other, now))
            and preempts(turn, other, now)
        ]
        return max(giving, key=lambda other: book.waiting.rank(other, now), default=None)

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
            if not book.give_way(now) and not (
                self._may_break(turn, fresh, now) and book.break_pin(turn.state, now)
            ):
                return False
            lease = book.kv.acquire(turn.state.owner, keys, pages, now, spare=spare)
        turn.spend(now)
        turn.lease = lease
        turn.computed = lease.shared * page
        turn.prefill_end = turn.length
        book.leave_queue(turn)
        book.running.append(turn)
        found = self._load(turn, keys, now)
        self._note_admission(turn, max(found * page, turn.computed), now)
        return True

    def _load(self, turn: TurnState, keys: Sequence[Hashable], now: float) -> int:
        """Have the host tier bring what it holds beyond the pool's part; return its pages."""
        book, lease = self._book, turn.lease
        if book.transfers is None or lease is None:
            return 0
        found = book.transfers.found(keys)
        more = found - lease.shared
        if more <= 0 or not book.policy.tiering.reload(more * book.kv.page_size):
            return 0

        def done(at: float, good: bool) -> None:
            book.loaded(turn, found if good else lease.shared, at)

        turn.loading = book.transfers.load(turn.state.owner, keys[:found], lease, now, done)
        return found

    def _note_admission(self, turn: TurnState, cached: int, now: float) -> None:
        book = self._book
        context = turn.state
        evicted = context.pin is None and cached + book.kv.page_size <= context.length
        book.pins.end(context, "handed_off", now)
        book.events.append(TurnAdmitted(turn.turn_id, now, cached))
        for listener in book.tell.started:
            listener.started(turn, now)
        if turn.admitted is not None:
            return
        turn.admitted = now
        turn.cached = cached
        book.counters.cached_tokens += cached
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
        return book.waiting.aged(turn, now) and book.kv.available() + book.pins.pages >= fresh

    def repetitions(self, slices: list[SeqSlice], horizon: int) -> int:
        """How often a step of decodes may be repeated without a new decision."""
        turns, page = self._book.turns, self._book.kv.page_size
        # Prefills come last, so that a step that is not all decodes is known at once.
        for piece in reversed(slices):
            turn = turns.get(piece.turn_id)
            if (
                turn is None
                or not piece.sample
                or piece.count > 1
                or turn.computed < turn.prefill_end
            ):
                return 1
            left = turn.request.max_output - turn.output
            horizon = min(horizon, left, len(piece.pages) * page - turn.computed)
        return max(horizon, 1)
