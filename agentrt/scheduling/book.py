"""What the scheduler holds, and what becomes of turns, programs and pages in it.

Planning and accounting (``planner.py``, ``scheduler.py``) both work on one :class:`Book`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentrt.errors import InternalError
from agentrt.scheduling.config import SchedulerConfig
from agentrt.scheduling.kv import KVCache
from agentrt.scheduling.pins import PinBook
from agentrt.scheduling.plan import Event, FinishReason, TurnFinished, TurnRequest
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.state import ContextState, ProgramState, TurnState

__all__ = ["Book", "Counters"]


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


class Book:
    """Programs, turns in their two queues, pins, events. ``waiting`` and ``running`` are disjoint.

    ``blocked_until`` is set while the head of the queue is known not to fit; whatever may let it
    start calls ``unblock``, and time alone cannot before that moment.
    """

    def __init__(self, kv: KVCache, policy: Policy, config: SchedulerConfig) -> None:
        self.kv = kv
        self.policy = policy
        self.config = config
        self.programs: dict[str, ProgramState] = {}
        self.turns: dict[str, TurnState] = {}
        self.waiting: list[TurnState] = []
        self.running: list[TurnState] = []
        self.events: list[Event] = []
        self.counters = Counters()
        self.blocked_until: float | None = None
        self.pins = PinBook(kv, int(kv.total * config.pin_share), self.events.append)

    def context(self, request: TurnRequest, now: float) -> ContextState:
        program = self.programs.get(request.program_id)
        if program is None or program.ending:
            program = self.programs[request.program_id] = ProgramState(request.program_id, now)
        found = program.contexts.get(request.context)
        if found is None:
            found = program.contexts[request.context] = ContextState(program, request.context)
        return found

    def finish(self, turn: TurnState, reason: FinishReason, now: float) -> None:
        """End a turn that waits or runs; exactly once for each."""
        turn.spend(now)
        context = turn.state
        if turn.lease is None:
            self.waiting.remove(turn)
            context.waiting_turns -= 1
        else:
            self.running.remove(turn)
            if reason != "failed":
                self.publish(turn, turn.computed, now)
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
        keep = served and not context.program.ending
        ttl = self.policy.retention.turn_ended(turn, now) if keep else 0.0
        if ttl > 0 and self.pins.add(context, turn.lease, ttl, now):
            turn.lease = None
        else:
            self.drop_lease(turn, now)

    def forget_if_ended(self, program: ProgramState, now: float) -> None:
        if not program.ending or program.live_turns or program.forgotten:
            return
        program.forgotten = True
        for context in program.contexts.values():
            self.pins.end(context, "final", now)
            self.kv.end_owner(context.owner)
        if self.programs.get(program.program_id) is program:
            del self.programs[program.program_id]
        self.policy.retention.program_ended(program.turns_served)

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

    def aged_at(self, turn: TurnState) -> float:
        return turn.submitted + self.config.max_wait

    def aged(self, turn: TurnState, now: float) -> bool:
        return now >= self.aged_at(turn)

    def rank(self, turn: TurnState, now: float) -> tuple[Any, ...]:
        if self.aged(turn, now):
            return (0, turn.submitted, turn.sequence)
        return (1, *self.policy.order(turn))

    def expire_pins(self, now: float) -> None:
        if self.pins.expire(now):
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
        ages = [self.aged_at(turn) for turn in self.waiting if self.aged_at(turn) > now]
        expiry = self.pins.next_expiry()
        return min(ages + ([expiry] if expiry is not None else []), default=None)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if queues, leases, pins and pages disagree."""
        self.kv.check_integrity()
        known = {turn.turn_id for turn in self.waiting + self.running}
        if known != self.turns.keys() or len(known) != len(self.waiting) + len(self.running):
            raise InternalError("Turns are not each in exactly one queue.")
        if any(turn.lease is not None for turn in self.waiting):
            raise InternalError("A waiting turn holds pages.")
        leases = [turn.lease for turn in self.running] + self.pins.leases()
        if None in leases or len({id(lease) for lease in leases}) != len(leases):
            raise InternalError("A running turn holds no pages, or two holders share a lease.")
        held = sum(len(lease.pages) - lease.shared for lease in leases if lease is not None)
        if held > self.kv.statistics().leased:
            raise InternalError(f"Leases hold {held} private pages, more than are leased.")
