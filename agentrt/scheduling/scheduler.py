"""The scheduler: one iteration loop's decisions, as a pure state machine.

    plan(now)                decides a step    1. end what was cancelled, expire pins
                                               2. decodes, then started prefills
                                               3. admit waiting turns while there is room
    commit(plan, result, now)  accounts for it   4. advance, publish pages, finish turns, pin

A waiting turn starts only from the head of the queue. Rank: past ``max_wait`` by age, above all;
then by the policy's order. A head that does not fit blocks the others, so nothing overtakes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agentrt.errors import ConfigError, InternalError, InvalidRequest, ProgramTooLarge, QueueFull
from agentrt.scheduling.cost import StepObserver
from agentrt.scheduling.kv import KVCache
from agentrt.scheduling.pins import PinBook
from agentrt.scheduling.plan import (
    Event,
    FinishReason,
    Sample,
    SchedulerStatistics,
    SeqSlice,
    StepPlan,
    StepResult,
    ToolEvent,
    TurnAdmitted,
    TurnFinished,
    TurnPreempted,
    TurnRequest,
)
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.state import ContextState, ProgramState, TurnState

__all__ = ["Scheduler", "SchedulerConfig"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds of the scheduler.

    Args:
        token_budget: tokens a step computes at most; decodes first.
        max_seqs: turns that run at the same time at most; below ``token_budget``.
        max_wait: seconds after which a waiting turn outranks pins and every younger turn.
        max_waiting: turns that may wait; one more is refused.
        reserve: ``output`` holds pages for prompt and longest output from the start, so a turn that
            runs is never preempted; ``prompt`` takes pages as they are needed and preempts.
        pin_share: share of the pool that pins may hold, 0 to 1.
    """

    token_budget: int = 2048
    max_seqs: int = 64
    max_wait: float = 600.0
    max_waiting: int = 10_000
    reserve: Literal["prompt", "output"] = "prompt"
    pin_share: float = 0.9

    def __post_init__(self) -> None:
        if not 1 <= self.max_seqs < self.token_budget:
            raise ConfigError(
                f"max_seqs is {self.max_seqs} and the token budget {self.token_budget}.",
                remedy="Make max_seqs at least 1 and the token budget larger than max_seqs.",
            )
        if self.max_wait < 0 or self.max_waiting < 1 or not 0 <= self.pin_share <= 1:
            raise ConfigError(
                f"max_wait={self.max_wait}, max_waiting={self.max_waiting}, "
                f"pin_share={self.pin_share} are not all in range.",
                remedy="Use max_wait >= 0, max_waiting >= 1 and 0 <= pin_share <= 1.",
            )


@dataclass(slots=True)
class _Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    turns_finished: int = 0
    longest_wait: float = 0.0


def _failed(sample: Sample | None) -> bool:
    return sample is not None and sample.finish == "failed"


class Scheduler:
    """See the module's first lines; the contract of each method is ``SchedulerProtocol``'s."""

    def __init__(
        self,
        kv: KVCache,
        policy: Policy,
        config: SchedulerConfig | None = None,
        *,
        step_observer: StepObserver | None = None,
    ) -> None:
        self._kv = kv
        self._policy = policy
        self._config = config or SchedulerConfig()
        self._observer = step_observer
        self._programs: dict[str, ProgramState] = {}
        self._turns: dict[str, TurnState] = {}
        self._waiting: list[TurnState] = []
        self._running: list[TurnState] = []
        self._events: list[Event] = []
        self._counters = _Counters()
        self._in_flight: tuple[StepPlan, float] | None = None
        self._sequence = 0
        self._blocked_until: float | None = None
        pin_pages = int(kv.total * self._config.pin_share)
        self._pins = PinBook(kv, pin_pages, self._events.append)

    # -- events from outside ----------------------------------------------------------------------

    def submit(self, request: TurnRequest, now: float) -> None:
        """Queue a turn. See ``SchedulerProtocol.submit``."""
        self._validate(request)
        self._expire_pins(now)
        context = self._context(request, now)
        if context.last_end is not None and context.live_turns == 0:
            self._policy.retention.returned(context.tool, now - context.last_end)
        prompt, page = len(request.tokens), self._kv.page_size
        if context.pin is not None:
            keys = request.tokens.page_keys(page, (prompt - 1) // page)
            self._pins.supersede(context, keys, now)
        context.waiting_turns += 1
        context.live_turns += 1
        context.program.live_turns += 1
        self._sequence += 1
        turn = TurnState(request, self._sequence, now, context, prompt, since=now)
        self._turns[request.turn_id] = turn
        self._waiting.append(turn)
        self._counters.prompt_tokens += prompt
        self._unblock()

    def _validate(self, request: TurnRequest) -> None:
        length = len(request.tokens)
        if length < 1 or request.max_output < 1:
            raise InvalidRequest(
                f"Turn {request.turn_id} has {length} prompt tokens and max_output "
                f"{request.max_output}.",
                remedy="Give at least one prompt token and ask for at least one output token.",
            )
        if request.turn_id in self._turns:
            raise InvalidRequest(
                f"Turn {request.turn_id} is already under way.", remedy="Use a new turn id."
            )
        if self._pages(length + request.max_output) > self._kv.total:
            raise ProgramTooLarge(
                f"{length} prompt and up to {request.max_output} output tokens do not fit the "
                f"pool of {self._kv.total * self._kv.page_size} tokens.",
                remedy="Shorten the prompt, lower max_tokens, or give the engine a larger pool.",
            )
        if len(self._waiting) >= self._config.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} turns are already waiting.",
                remedy="Try again later, or raise max_waiting.",
            )

    def _context(self, request: TurnRequest, now: float) -> ContextState:
        program = self._programs.get(request.program_id)
        if program is None or program.ending:
            program = self._programs[request.program_id] = ProgramState(request.program_id, now)
        found = program.contexts.get(request.context)
        if found is None:
            found = program.contexts[request.context] = ContextState(program, request.context)
        return found

    def cancel(self, turn_id: str, now: float) -> bool:
        """End a turn: at once if no step is under way, else at its commit."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return False
        turn.cancelled = True
        if self._in_flight is None or turn.lease is None:
            self._finish(turn, "cancelled", now)
        return True

    def end_program(self, program_id: str, now: float) -> None:
        """Cancel the program's turns and let go of its KV."""
        program = self._programs.get(program_id)
        if program is None:
            return
        program.ending = True
        for turn in [turn for turn in self._turns.values() if turn.state.program is program]:
            self.cancel(turn.turn_id, now)
        for context in program.contexts.values():
            self._pins.end(context, "final", now)
        self._forget_if_ended(program, now)
        self._unblock()

    def tool_event(self, event: ToolEvent, now: float) -> None:
        """Note which tool a context is in, so that its gap is learned under the right name."""
        program = self._programs.get(event.program_id)
        context = program.contexts.get(event.context) if program is not None else None
        if context is not None and event.kind == "started":
            context.tool = event.tool

    def take_events(self) -> list[Event]:
        """Return the events since the last ``commit`` or ``take_events``."""
        events = list(self._events)
        self._events.clear()
        return events

    def next_deadline(self, now: float) -> float | None:
        """Return when the passing of time alone may change a decision, if no turn ends before."""
        if not self._waiting:
            return None
        ages = [self._aged_at(turn) for turn in self._waiting if self._aged_at(turn) > now]
        expiry = self._pins.next_expiry()
        return min(ages + ([expiry] if expiry is not None else []), default=None)

    # -- plan -------------------------------------------------------------------------------------

    def plan(self, now: float, horizon: int = 1) -> StepPlan:
        """Decide the next step, up to ``horizon`` repetitions of it if all are decodes."""
        if self._in_flight is not None:
            raise InternalError("A step was planned before the last one was committed.")
        self._expire_pins(now)
        slices = self._continue_running(now)
        budget = self._config.token_budget - sum(piece.count for piece in slices)
        self._admit(slices, budget, now)
        repeat = self._repetitions(slices, horizon) if horizon > 1 else 1
        plan = StepPlan(tuple(slices), repeat)
        if slices:
            self._in_flight = (plan, now)
        return plan

    def _continue_running(self, now: float) -> list[SeqSlice]:
        """Plan every decode, then prefill chunks of turns that have started."""
        decodes = [turn for turn in self._running if turn.decoding]
        for turn in decodes:
            if turn.lease is not None:
                self._cover(turn, turn.computed + 1, now)
        slices: list[SeqSlice] = []
        budget = self._config.token_budget
        for decoding in (True, False):
            for turn in self._running:
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
        needed = self._pages(tokens)
        while turn.lease is not None and len(turn.lease.pages) < needed:
            if self._kv.extend(turn.lease, needed):
                return
            victim = max(self._running, key=lambda other: self._rank(other, now))
            if len(self._running) > 1:
                self._preempt(victim, now)
            elif not self._break_pin(turn.state, now):
                raise InternalError(f"Turn {turn.turn_id} fits the pool but finds no page.")

    def _preempt(self, turn: TurnState, now: float) -> None:
        """Send a running turn back to the queue; what it computed stays cached while it can."""
        turn.spend(now)
        self._publish(turn, turn.computed, now)
        self._drop_lease(turn, now)
        turn.preemptions += 1
        turn.state.waiting_turns += 1
        self._running.remove(turn)
        self._waiting.append(turn)
        self._counters.preemptions += 1
        self._events.append(TurnPreempted(turn.turn_id, now))
        self._unblock()

    def _admit(self, slices: list[SeqSlice], budget: int, now: float) -> None:
        """Start waiting turns, best rank first, until one does not fit."""
        if self._blocked_until is not None and now < self._blocked_until and self._running:
            return
        while self._waiting and budget > 0 and len(self._running) < self._config.max_seqs:
            head = min(self._waiting, key=lambda turn: self._rank(turn, now))
            if not self._start(head, now):
                deadline = self.next_deadline(now)
                self._blocked_until = deadline if deadline is not None else float("inf")
                return
            piece = self._slice(head, budget)
            budget -= piece.count
            slices.append(piece)

    def _start(self, turn: TurnState, now: float) -> bool:
        """Lease pages for a waiting turn and let it run; False if it does not fit now."""
        page = self._kv.page_size
        keys = turn.request.tokens.page_keys(page, (turn.length - 1) // page)
        pages = self._pages(self._reserved_tokens(turn))
        # Room for the next page of everything that runs: else a start is a preemption at once.
        spare = len(self._running) if self._config.reserve == "prompt" else 0
        lease = self._kv.acquire(turn.state.owner, keys, pages, now, spare=spare)
        while lease is None:
            if not self._may_break(turn, now) or not self._break_pin(turn.state, now):
                return False
            lease = self._kv.acquire(turn.state.owner, keys, pages, now, spare=spare)
        turn.spend(now)
        turn.lease = lease
        turn.computed = lease.shared * page
        turn.prefill_end = turn.length
        self._waiting.remove(turn)
        self._running.append(turn)
        turn.state.waiting_turns -= 1
        self._note_admission(turn, now)
        return True

    def _note_admission(self, turn: TurnState, now: float) -> None:
        context = turn.state
        evicted = context.pin is None and turn.computed + self._kv.page_size <= context.length
        self._pins.end(context, "handed_off", now)
        self._events.append(TurnAdmitted(turn.turn_id, now, turn.computed))
        if turn.admitted is not None:
            return
        turn.admitted = now
        turn.cached = turn.computed
        self._counters.cached_tokens += turn.computed
        self._counters.longest_wait = max(self._counters.longest_wait, now - turn.submitted)
        if context.last_end is not None:
            self._policy.retention.admitted(now - turn.submitted, evicted)

    def _reserved_tokens(self, turn: TurnState) -> int:
        if self._config.reserve == "output":
            return turn.prompt_tokens + turn.request.max_output
        return turn.length + 1

    def _may_break(self, turn: TurnState, now: float) -> bool:
        """Live pins yield to an aged turn, or when nothing else can run, or as the policy says."""
        return self._policy.pin_break == "head" or not self._running or self._aged(turn, now)

    def _break_pin(self, beneficiary: ContextState, now: float) -> bool:
        victim = self._pins.victim(beneficiary)
        return victim is not None and self._pins.end(victim, "broken", now)

    def _repetitions(self, slices: list[SeqSlice], horizon: int) -> int:
        """How often a step of decodes may be repeated without a new decision."""
        repeat = horizon
        page = self._kv.page_size
        for piece in slices:
            turn = self._turns[piece.turn_id]
            if not piece.sample or piece.count > 1 or not turn.decoding:
                return 1
            room = len(piece.pages) * page - turn.computed
            repeat = min(repeat, turn.request.max_output - turn.output, room)
        return max(repeat, 1)

    # -- commit -----------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Account for a step that ended at ``now``."""
        if self._in_flight is None or self._in_flight[0] is not plan:
            raise InternalError("A step was committed that is not the planned one.")
        started, self._in_flight = self._in_flight[1], None
        prefilled = sum(self._advance(piece, result, now) for piece in plan.slices)
        self._counters.steps += plan.repeat
        if self._observer is not None:
            self._observer.observe(prefilled, plan.tokens, now - started)
        return self.take_events()

    def _advance(self, piece: SeqSlice, result: StepResult, now: float) -> int:
        """Move one turn forward; return how many of its tokens were prefill."""
        turn = self._turns[piece.turn_id]
        sample = result.samples.get(piece.turn_id)
        if piece.sample != (sample is not None) and not _failed(sample):
            raise InternalError(f"The step's samples do not fit its plan at {piece.turn_id}.")
        done = piece.count - 1 + len(sample.tokens) if sample is not None else piece.count
        prefilled = max(min(turn.computed + piece.count, turn.prefill_end) - turn.computed, 0)
        turn.computed += done
        turn.prefilled += prefilled
        self._counters.prefilled_tokens += prefilled
        turn.spend(now)
        # A failed step may not have written its pages: nobody else may find them.
        if prefilled and not _failed(sample):
            self._publish(turn, min(turn.computed, turn.prefill_end), now)
        reason = self._take_sample(turn, sample, now) if sample is not None else None
        if turn.cancelled:
            reason = "cancelled"
        if reason is not None:
            self._finish(turn, reason, now)
        return prefilled

    def _take_sample(self, turn: TurnState, sample: Sample, now: float) -> FinishReason | None:
        turn.request.tokens.extend(sample.tokens)
        turn.output += len(sample.tokens)
        self._counters.output_tokens += len(sample.tokens)
        if turn.first_token is None and len(sample.tokens):
            turn.first_token = now
        if sample.tool is not None:
            turn.tool_seen = sample.tool
        if sample.finish is not None:
            return sample.finish
        return "length" if turn.output >= turn.request.max_output else None

    def _finish(self, turn: TurnState, reason: FinishReason, now: float) -> None:
        """End a turn that waits or runs; exactly once for each."""
        turn.spend(now)
        context = turn.state
        if turn.lease is None:
            self._waiting.remove(turn)
            context.waiting_turns -= 1
        else:
            self._running.remove(turn)
            if reason != "failed":
                self._publish(turn, turn.computed, now)
        self._retain(turn, reason, now)
        del self._turns[turn.turn_id]
        context.live_turns -= 1
        context.program.live_turns -= 1
        self._counters.turns_finished += 1
        self._events.append(TurnFinished(turn.stats(reason, now)))
        self._forget_if_ended(context.program, now)
        self._unblock()

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
        ttl = self._policy.retention.turn_ended(turn, now) if keep else 0.0
        if ttl > 0 and self._pins.add(context, turn.lease, ttl, now):
            turn.lease = None
        else:
            self._drop_lease(turn, now)

    def _forget_if_ended(self, program: ProgramState, now: float) -> None:
        if not program.ending or program.live_turns or program.forgotten:
            return
        program.forgotten = True
        for context in program.contexts.values():
            self._pins.end(context, "final", now)
            self._kv.end_owner(context.owner)
        if self._programs.get(program.program_id) is program:
            del self._programs[program.program_id]
        self._policy.retention.program_ended(program.turns_served)

    # -- small helpers ----------------------------------------------------------------------------

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._kv.page_size)

    def _publish(self, turn: TurnState, computed: int, now: float) -> None:
        if turn.lease is None:
            return
        page = self._kv.page_size
        full = computed // page
        if full > turn.lease.shared:
            self._kv.publish(turn.lease, turn.request.tokens.page_keys(page, full), now)

    def _drop_lease(self, turn: TurnState, now: float) -> None:
        if turn.lease is not None:
            self._kv.release(turn.lease, now)
            turn.lease = None

    def _aged_at(self, turn: TurnState) -> float:
        return turn.submitted + self._config.max_wait

    def _aged(self, turn: TurnState, now: float) -> bool:
        return now >= self._aged_at(turn)

    def _rank(self, turn: TurnState, now: float) -> tuple[Any, ...]:
        if self._aged(turn, now):
            return (0, turn.submitted, turn.sequence)
        return (1, *self._policy.order(turn))

    def _expire_pins(self, now: float) -> None:
        if self._pins.expire(now):
            self._unblock()

    def _unblock(self) -> None:
        """Something changed that may let the head of the queue start."""
        self._blocked_until = None

    # -- reports ----------------------------------------------------------------------------------

    def statistics(self) -> SchedulerStatistics:
        """Return gauges and counters."""
        counts, counters, pins = self._kv.statistics(), self._counters, self._pins
        return SchedulerStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            programs=len(self._programs),
            pins=len(pins),
            pages_total=counts.total,
            pages_free=counts.free,
            pages_cached=counts.cached,
            pages_leased=counts.leased,
            pages_pinned=min(pins.pages, counts.leased),
            page_size=self._kv.page_size,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            prefilled_tokens=counters.prefilled_tokens,
            output_tokens=counters.output_tokens,
            preemptions=counters.preemptions,
            steps=counters.steps,
            turns_finished=counters.turns_finished,
            pins_handed_off=pins.outcomes["handed_off"],
            pins_expired=pins.outcomes["expired"],
            pins_broken=pins.outcomes["broken"],
            pins_final=pins.outcomes["final"],
            longest_wait=counters.longest_wait,
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if queues, leases, pins and pages disagree."""
        self._kv.check_integrity()
        known = {turn.turn_id for turn in self._waiting + self._running}
        if known != self._turns.keys() or len(known) != len(self._waiting) + len(self._running):
            raise InternalError("Turns are not each in exactly one queue.")
        if any(turn.lease is not None for turn in self._waiting):
            raise InternalError("A waiting turn holds pages.")
        leases = [turn.lease for turn in self._running] + self._pins.leases()
        if None in leases or len({id(lease) for lease in leases}) != len(leases):
            raise InternalError("A running turn holds no pages, or two holders share a lease.")
        held = sum(len(lease.pages) - lease.shared for lease in leases if lease is not None)
        if held > self._kv.statistics().leased:
            raise InternalError(f"Leases hold {held} private pages, more than are leased.")
