"""What the scheduler holds, and what becomes of turns, programs and pages in it.

Planning and accounting (``planner.py``, ``scheduler.py``) both work on one :class:`Book`.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.errors import InternalError
from agentrt.scheduling.config import SchedulerConfig
from agentrt.scheduling.kv import KVCache, PageArchive
from agentrt.scheduling.listeners import Listeners
from agentrt.scheduling.opened import OpenTurns
from agentrt.scheduling.pins import PinBook
from agentrt.scheduling.plan import Event, FinishReason, PinOutcome, TurnFinished, TurnRequest
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.prefetch import Prefetcher
from agentrt.scheduling.queue import WaitingQueue
from agentrt.scheduling.state import ContextState, Pin, ProgramState, TurnState
from agentrt.scheduling.transfers import TransferBook

__all__ = ["Book", "Counters"]


SEALED_TTL = 60.0
"""Seconds that a sealed turn's pages are kept if it is never taken; else until it starts."""


@dataclass(slots=True)
class Counters:
    """Counts since the start; ``longest_wait`` in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    turns_finished: int = 0
    longest_wait: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Book:
    """Programs, turns in their two queues, pins, events. ``waiting`` and ``running`` are disjoint.

    ``blocked_until`` is set while the head of the queue is known not to fit; whatever may let it
    start calls ``unblock``, and time alone cannot before that moment.
    """

    def __init__(
        self,
        kv: KVCache,
        policy: Policy,
        config: SchedulerConfig,
        host: KVCache | None,
        archive: PageArchive | None = None,
    ) -> None:
        self.kv = kv
        self.policy = policy
        self.config = config
        self.programs: dict[str, ProgramState] = {}
        self.turns: dict[str, TurnState] = {}
        self.waiting = WaitingQueue(
            policy.order,
            config.max_wait,
            reorders=policy.reorders,
            groups=policy.groups,
            epoch=policy.epoch,
        )
        self.running: list[TurnState] = []
        self.events: list[Event] = []
        self.counters = Counters()
        self.blocked_until: float | None = None
        self.opened = OpenTurns(kv)
        self.transfers = None if host is None else TransferBook(kv, host, archive)
        self.pins = PinBook(
            kv,
            int(kv.total * config.pin_share),
            self.events.append,
            self._pin_changed,
            policy.yields,
        )
        transfers = self.transfers
        self.prefetcher = None if transfers is None else Prefetcher(kv, transfers, self.pins)
        self.tell = Listeners(policy.listeners)

    def _pin_changed(self, context: ContextState, outcome: PinOutcome | None, now: float) -> None:
        """A pin began (no outcome) or ended: the order may rank the context's turns anew."""
        if outcome is None:
            for listener in self.tell.pinned:
                listener.pinned(context, now)
        else:
            for listener in self.tell.unpinned:
                listener.unpinned(context, outcome, now)
        for turn in context.waiting:
            self.waiting.touch(turn)

    def context(self, request: TurnRequest, now: float) -> ContextState:
        program = self.programs.get(request.program_id)
        if program is None or program.ending:
            arrival = now if request.program_arrival is None else request.program_arrival
            program = ProgramState(request.program_id, arrival, request.tenant)
            self.programs[request.program_id] = program
        found = program.contexts.get(request.context)
        if found is None:
            found = program.contexts[request.context] = ContextState(program, request.context)
        return found

    def seal(self, turn_id: str, context: ContextState, now: float) -> None:
        """Keep what an open turn has computed for the context's turn that comes now."""
        lease = self.opened.take(turn_id)
        if lease is not None and not self.pins.add(context, lease, SEALED_TTL, now):
            self.kv.release(lease, now)

    def wait(self, turn: TurnState) -> None:
        """Put a turn into the queue."""
        turn.state.waiting.append(turn)
        self.waiting.add(turn)

    def leave_queue(self, turn: TurnState) -> None:
        """Take a turn out of the queue."""
        self.waiting.remove(turn)
        turn.state.waiting.remove(turn)

    def finish(self, turn: TurnState, reason: FinishReason, now: float) -> None:
        """End a turn that waits or runs; exactly once for each."""
        turn.spend(now)
        context = turn.state
        if turn.lease is None:
            self.leave_queue(turn)
            self.pins.watch(context)
        else:
            self.running.remove(turn)
            if reason != "failed":
                self.publish(turn, turn.computed, now)
        for listener in self.tell.ended:
            listener.ended(turn, reason, now)
        self._retain(turn, reason, now)
        del self.turns[turn.turn_id]
        context.live_turns -= 1
        self.counters.turns_finished += 1
        self.events.append(TurnFinished(turn.stats(reason, now)))
        self.forget_if_ended(context.program, now)
        self.unblock()

    def _retain(self, turn: TurnState, reason: FinishReason, now: float) -> None:
        """Decide what becomes of the KV of a turn that ends."""
        context, served = turn.state, reason in ("stop", "length")
        if served:
            context.last_end, context.length, context.tool = now, turn.length, turn.tool
            context.program.turns_served += 1
            context.program.ending |= turn.request.last
        if turn.lease is None:
            return
        keep, stored = served and not context.program.ending, False
        if keep and self.transfers is not None and self.policy.tiering.offload(turn, now):
            keys = turn.request.tokens.page_keys(self.kv.page_size, turn.lease.shared)
            stored = self.transfers.store(context.owner, keys, now)
        ttl = self.policy.retention.turn_ended(turn, now) if keep else 0.0
        if ttl > 0 and self.pins.add(context, turn.lease, ttl, now):
            turn.lease = None
        else:
            self.drop_lease(turn, now)
        if stored and self.prefetcher is not None and context.live_turns == 1:
            self.prefetcher.ask(context, keys, self.policy.tiering.prefetch(context, now))

    def foresee(self, context: ContextState, now: float) -> None:
        """A context's tool made progress: its KV may be wanted at another time."""
        keys = self.prefetcher.keys(context) if self.prefetcher is not None else None
        if self.prefetcher is not None and keys is not None:
            self.prefetcher.ask(context, keys, self.policy.tiering.prefetch(context, now))

    def prefetch(self, now: float) -> None:
        """Bring back what is due while nobody waits."""
        if self.prefetcher is not None and not self.waiting:
            self.prefetcher.run(len(self.running), now)

    def fetch(self, turn: TurnState, now: float) -> None:
        """Have files read for a turn that was handed in, if they hold more than the pool does."""
        if self.transfers is None:
            return
        page = self.kv.page_size
        keys = turn.request.tokens.page_keys(page, (turn.length - 1) // page)
        missing = len(keys) - self.kv.match(keys)

        def done(at: float, good: bool) -> None:
            turn.fetching = False

        if missing and self.policy.tiering.reload(missing * page):
            turn.fetching = self.transfers.fetch(turn.state.owner, keys, now, done) is not None

    def on_its_way(self, turn: TurnState) -> bool:
        """Whether a waiting turn's KV is being brought from the host or from files."""
        if turn.fetching:
            return True
        return self.prefetcher is not None and self.prefetcher.loading(turn.state)

    def give_way(self, now: float) -> bool:
        """Let go of pages that are held only for as long as no turn needs them; False: of none."""
        return self.opened.give_way(now) or self.pins.yield_soft(now)

    def forget_if_ended(self, program: ProgramState, now: float) -> None:
        if not program.ending or program.live_turns or program.forgotten:
            return
        program.forgotten = True
        for context in program.contexts.values():
            self.let_go(context, now)
        if self.programs.get(program.program_id) is program:
            del self.programs[program.program_id]
        self.policy.retention.program_ended(program.turns_served)
        for listener in self.tell.program_ended:
            listener.program_ended(program, now)

    def let_go(self, context: ContextState, now: float) -> None:
        """A context is not expected back: end its pin, and let its KV go before any other."""
        context.gone = True
        self.pins.end(context, "final", now)
        if self.prefetcher is not None:
            self.prefetcher.forget(context)
        self.kv.end_owner(context.owner)
        if self.transfers is not None:
            self.transfers.end_owner(context.owner)

    def loaded(self, turn: TurnState, pages: int, now: float) -> None:
        """Note that a turn's load is over: its first ``pages`` pages hold what they should."""
        turn.loading = None
        turn.computed = pages * self.kv.page_size
        self.publish(turn, turn.computed, now)
        if turn.cancelled:
            self.finish(turn, "cancelled", now)

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.kv.page_size)

    def publish(self, turn: TurnState, computed: int, now: float) -> None:
        if turn.lease is None:
            return
        page = self.kv.page_size
        full = computed // page
        if full > turn.lease.shared:
            self.kv.publish(turn.lease, turn.request.tokens.page_keys(page, full), now)

    def drop_lease(self, turn: TurnState, now: float) -> None:
        if turn.lease is not None:
            self.kv.release(turn.lease, now)
            turn.lease = None

    def expire_pins(self, now: float) -> None:
        retention = self.policy.retention

        def expiring(pin: Pin) -> float:
            return retention.pin_expiring(pin.context, now - pin.start, now)

        if self.pins.expire(now, expiring):
            self.unblock()

    def unblock(self) -> None:
        """Something changed that may let the head of the queue start."""
        self.blocked_until = None

    def break_pin(self, beneficiary: ContextState, now: float) -> bool:
        victim = self.pins.victim(beneficiary)
        return victim is not None and self.pins.end(victim, "broken", now)

    def next_deadline(self, now: float) -> float | None:
        """Return when the passing of time alone may change a decision, if no turn ends before."""
        if not self.waiting:
            return None
        times = (
            self.waiting.next_aging(now),
            self.pins.next_expiry(),
            self.policy.admission.next_change(now),
        )
        return min((time for time in times if time is not None), default=None)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if queues, leases, pins and pages disagree."""
        self.kv.check_integrity()
        if self.transfers is not None:
            self.transfers.check_integrity()
        waiting = list(self.waiting)
        known = {turn.turn_id for turn in waiting + self.running}
        if known != self.turns.keys() or len(known) != len(waiting) + len(self.running):
            raise InternalError("Turns are not each in exactly one queue.")
        if any(turn.lease is not None or turn not in turn.state.waiting for turn in waiting):
            raise InternalError("A waiting turn holds pages, or its context does not know it.")
        leases = [turn.lease for turn in self.running] + self.pins.leases()
        leases += self.opened.leases()
        leases += self.prefetcher.leases() if self.prefetcher is not None else ()
        if None in leases or len({id(lease) for lease in leases}) != len(leases):
            raise InternalError("A running turn holds no pages, or two holders share a lease.")
        held = sum(len(lease.pages) - lease.shared for lease in leases if lease is not None)
        if held > self.kv.statistics().leased:
            raise InternalError(f"Leases hold {held} private pages, more than are leased.")
