"""The scheduler: one iteration loop's decisions, as a pure state machine.

    plan(now)                decides a step    1. end what was cancelled, expire pins
                                               2. decodes, then started prefills
                                               3. admit waiting turns while there is room
    commit(plan, result, now)  accounts for it   4. advance, publish pages, finish turns, pin
    follow(plan, now)        decides the step after one that is not committed, if nothing is open

A waiting turn starts only from the head of the queue. Rank: past ``max_wait`` by age, above all;
then by the policy's order. A head that does not fit blocks the others, so nothing overtakes it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence

from agentrt.errors import InternalError, InvalidRequest, ProgramTooLarge, QueueFull
from agentrt.scheduling.book import Book
from agentrt.scheduling.config import SchedulerConfig
from agentrt.scheduling.cost import StepObserver
from agentrt.scheduling.drafting import DraftDesk, Drafter
from agentrt.scheduling.figures import figures
from agentrt.scheduling.following import Follower
from agentrt.scheduling.graph_declared import DeclaredGraph, Edge, Step
from agentrt.scheduling.kv import KVCache, PageArchive
from agentrt.scheduling.listeners import Listeners
from agentrt.scheduling.plan import (
    Event,
    FinishReason,
    OpenRequest,
    Sample,
    SchedulerStatistics,
    SeqSlice,
    StepPlan,
    StepResult,
    ToolEvent,
    TurnRequest,
)
from agentrt.scheduling.planner import Planner
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.state import TurnState

__all__ = ["Scheduler", "SchedulerConfig"]


def _failed(sample: Sample | None) -> bool:
    return sample is not None and sample.finish == "failed"


def _repeated(plan: StepPlan, result: StepResult) -> int:
    """How often a plan was run: a driver may stop short of what it was allowed."""
    if plan.repeat == 1:
        return 1
    longest = max((len(sample.tokens) for sample in result.samples.values()), default=1)
    return max(min(plan.repeat, longest), 1)


class Scheduler:
    """See the module's first lines; the contract of each method is ``SchedulerProtocol``'s.

    ``host`` is a second page cache for a host tier: its driver must carry out the plans' transfers.
    ``archive`` says what files hold, from which the host tier can be filled.
    ``drafter`` guesses tokens that decodes compute along; its driver must understand such slices.
    """

    def __init__(
        self,
        kv: KVCache,
        policy: Policy,
        config: SchedulerConfig | None = None,
        *,
        host: KVCache | None = None,
        archive: PageArchive | None = None,
        step_observer: StepObserver | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._book = Book(kv, policy, config or SchedulerConfig(), host, archive)
        self._drafts = None if drafter is None else DraftDesk(drafter, self._book)
        if self._drafts is not None:
            self._book.tell = Listeners((*policy.listeners, self._drafts))
        self._planner = Planner(self._book, self._drafts)
        self._follower = Follower(self._book)
        self._observer = step_observer
        self._in_flight: deque[tuple[StepPlan, float]] = deque()
        self._committed = -math.inf
        self._sequence = 0

    # -- events from outside -------------------------------------------------------------------

    def submit(self, request: TurnRequest, now: float, opened: str | None = None) -> None:
        """Queue a turn. See ``SchedulerProtocol.submit``."""
        self._validate(request)
        self._book.expire_pins(now)
        context = self._book.context(request, now)
        if context.last_end is not None and context.live_turns == 0:
            tool = request.hints.last_tool or context.tool
            self._book.policy.retention.returned(tool, now - context.last_end)
        context.gone = False
        if self._book.prefetcher is not None:
            self._book.prefetcher.forget(context)
        if opened is not None:
            self._book.seal(opened, context, now)
        prompt, page = len(request.tokens), self._book.kv.page_size
        if context.pin is not None:
            keys = request.tokens.page_keys(page, (prompt - 1) // page)
            self._book.pins.supersede(context, keys, now)
        context.live_turns += 1
        self._sequence += 1
        turn = TurnState(request, self._sequence, now, context, prompt, since=now)
        self._book.turns[request.turn_id] = turn
        for listener in self._book.tell.submitted:
            listener.submitted(turn, now)
        self._book.fetch(turn, now)
        self._book.wait(turn)
        self._book.counters.prompt_tokens += prompt
        self._book.unblock()

    def _validate(self, request: TurnRequest) -> None:
        length = len(request.tokens)
        if length < 1 or request.max_output < 1:
            raise InvalidRequest(
                f"Turn {request.turn_id} has {length} prompt tokens and max_output "
                f"{request.max_output}.",
                remedy="Give at least one prompt token and ask for at least one output token.",
            )
        if request.turn_id in self._book.turns:
            raise InvalidRequest(
                f"Turn {request.turn_id} is already under way.", remedy="Use a new turn id."
            )
        if self._book.pages(length + request.max_output) > self._book.kv.total:
            raise ProgramTooLarge(
                f"{length} prompt and up to {request.max_output} output tokens do not fit the "
                f"pool of {self._book.kv.total * self._book.kv.page_size} tokens.",
                remedy="Shorten the prompt, lower max_tokens, or give the engine a larger pool.",
            )
        if len(self._book.waiting) >= self._book.config.max_waiting:
            raise QueueFull(
                f"{len(self._book.waiting)} turns are already waiting.",
                remedy="Try again later, or raise max_waiting.",
            )

    def open(self, request: OpenRequest) -> None:
        """Compute a prompt ahead while it grows. See ``SchedulerProtocol.open``."""
        self._book.opened.add(request)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int], now: float) -> None:
        """Replace the end of an open turn's tokens. See ``SchedulerProtocol.revise``."""
        self._book.opened.revise(turn_id, keep, tokens, now)

    def close(self, turn_id: str, now: float) -> None:
        """Forget an open turn. See ``SchedulerProtocol.close``."""
        self._book.opened.close(turn_id, now)

    def cancel(self, turn_id: str, now: float) -> bool:
        """End a turn: at once if no step is under way, else at its commit."""
        turn = self._book.turns.get(turn_id)
        if turn is None:
            return False
        turn.cancelled = True
        if turn.loading is None and (not self._in_flight or turn.lease is None):
            self._book.finish(turn, "cancelled", now)
        return True

    def end_program(self, program_id: str, now: float) -> None:
        """Cancel the program's turns and let go of its KV."""
        self._book.opened.end(program_id, now)
        program = self._book.programs.get(program_id)
        if program is None:
            return
        program.ending = True
        if program.live_turns:
            turns = self._book.turns.values()
            for turn in [turn for turn in turns if turn.state.program is program]:
                self.cancel(turn.turn_id, now)
        for context in program.contexts.values():
            self._book.pins.end(context, "final", now)
        self._book.forget_if_ended(program, now)
        self._book.unblock()

    def end_context(self, program_id: str, context: str, now: float) -> None:
        """Let go of the KV of one context of a program, unless it has a turn under way."""
        self._book.opened.end(program_id, now, context)
        program = self._book.programs.get(program_id)
        found = program.contexts.get(context) if program is not None else None
        if found is not None and found.live_turns == 0:
            self._book.let_go(found, now)
            self._book.unblock()

    def declare(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Pass a program's execution graph on to the policy."""
        DeclaredGraph.of(steps, edges)
        for listener in self._book.tell.declared:
            listener.declared(program_id, steps, edges)

    def tool_event(self, event: ToolEvent, now: float) -> None:
        """Note what a context's tool does: which gap is learned, and when its pin should end."""
        program = self._book.programs.get(event.program_id)
        context = program.contexts.get(event.context) if program is not None else None
        if context is None:
            return
        if event.kind == "started":
            context.tool = event.tool
        for listener in self._book.tell.tool_event:
            listener.tool_event(context, event, now)
        ttl = self._book.policy.retention.tool_event(context, event, now)
        if ttl is not None:
            self._book.pins.set_expiry(context, now + max(ttl, 0.0))
        self._book.foresee(context, now)

    def transferred(
        self, tickets: Collection[int], now: float, failed: Collection[int] = ()
    ) -> None:
        """Note that copies are over: what was loaded can be used, what was stored be found.

        What ``failed`` is as if it had never begun.
        """
        if self._book.transfers is None:
            raise InternalError("A transfer ended, but there is no host tier.")
        for ticket in tickets:
            self._book.transfers.finish(ticket, now)
        for ticket in failed:
            self._book.transfers.finish(ticket, now, failed=True)
        self._book.unblock()

    def take_events(self) -> list[Event]:
        """Return the events since the last ``commit`` or ``take_events``."""
        events = list(self._book.events)
        self._book.events.clear()
        return events

    def restart(self, now: float) -> None:
        """All KV is lost: running turns wait again, pins are broken, the prefix tree is empty."""
        if self._in_flight:
            raise InternalError("The KV was given up while a step was under way.")
        book = self._book
        book.opened.let_go(now)
        if book.prefetcher is not None:
            book.prefetcher.abort(now)
        for turn in book.turns.values():
            turn.fetching = False
        if book.transfers is not None:
            book.transfers.abort(now)
        self._planner.preempt_all(now)
        book.pins.end_all("broken", now)
        book.kv.reset()
        book.unblock()

    # -- plan and commit -----------------------------------------------------------------------

    def plan(self, now: float, horizon: int = 1) -> StepPlan:
        """Decide the next step, up to ``horizon`` repetitions of it if all are decodes."""
        if self._in_flight:
            raise InternalError("A step was planned before the last one was committed.")
        for listener in self._book.tell.tick:
            listener.tick(now)
        self._book.expire_pins(now)
        slices, budget = self._planner.continue_running(now)
        self._planner.admit(slices, budget, now)
        self._planner.compute_ahead(slices, now)
        self._book.prefetch(now)
        repeat = self._planner.repetitions(slices, horizon) if horizon > 1 else 1
        transfers = self._book.transfers
        new = transfers.take_new() if transfers is not None else ()
        plan = StepPlan(tuple(slices), repeat, new)
        if slices:
            self._in_flight.append((plan, now))
        return plan

    def follow(self, plan: StepPlan, now: float) -> StepPlan | None:
        """Decide the step after one that is under way. See ``SchedulerProtocol.follow``."""
        if len(self._in_flight) != 1 or self._in_flight[0][0] is not plan:
            raise InternalError("A step was to follow one that is not the only one under way.")
        if self._drafts is not None:
            return None  # guesses are made from the newest token
        self._book.expire_pins(now)
        slices = self._follower.slices(plan, now)
        if slices is None:
            return None
        for listener in self._book.tell.tick:
            listener.tick(now)
        following = StepPlan(slices)
        self._in_flight.append((following, now))
        return following

    def welcomes(self, request: TurnRequest) -> bool:
        """Whether the next step would prefill a turn whole. See ``SchedulerProtocol.welcomes``."""
        return self._planner.welcomes(request.tokens)

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Account for a step that ended at ``now``."""
        if not self._in_flight or self._in_flight[0][0] is not plan:
            raise InternalError("A step was committed that is not the planned one.")
        # A step that was launched early began, for everybody's account, as the last one ended.
        seconds = now - max(self._in_flight.popleft()[1], self._committed)
        self._committed = now
        following = {piece.turn_id for next_, _ in self._in_flight for piece in next_.slices}
        if result.abandoned:
            self._abandon(plan, seconds, now)
            return self.take_events()
        turns, samples = self._book.turns, result.samples
        total = ahead = 0
        for piece in plan.slices:
            turn, sample = turns.get(piece.turn_id), samples.get(piece.turn_id)
            if turn is None:
                ahead += self._ahead(piece, sample, now)
                continue
            if turn.ended is not None:
                self._end_late(turn, seconds, now)
                continue
            if piece.sample != (sample is not None) and not _failed(sample):
                raise InternalError(f"The step's samples do not fit its plan at {turn.turn_id}.")
            prefilled = 0
            if turn.computed < turn.prefill_end:
                prefilled = self._prefill(turn, piece.count, sample, now)
                total += prefilled
            elif sample is not None:
                turn.computed += len(sample.tokens)
                if piece.draft:
                    self._book.counters.drafted_tokens += len(piece.draft)
                    self._book.counters.accepted_tokens += len(sample.tokens[1:])
            reason = self._account(turn, sample, prefilled, seconds, now)
            if reason is None:
                continue
            if turn.turn_id in following:
                turn.ended = reason
            else:
                self._book.finish(turn, reason, now)
        self._book.counters.prefilled_tokens += total
        self._book.counters.steps += _repeated(plan, result)
        if self._observer is not None:
            self._observer.observe(total + ahead, plan.tokens, seconds)
        if self._drafts is not None:
            self._drafts.drafter.observe(plan, result, seconds)
        return self.take_events()

    def _abandon(self, plan: StepPlan, seconds: float, now: float) -> None:
        """Charge a step that was given up to its turns, which are where they were before it."""
        for piece in plan.slices:
            turn = self._book.turns.get(piece.turn_id)
            if turn is None:
                continue
            turn.program.service += seconds
            turn.spend(now)
            if turn.cancelled:
                self._book.finish(turn, "cancelled", now)
        self._book.counters.steps += 1
        self._book.unblock()

    def _ahead(self, piece: SeqSlice, sample: Sample | None, now: float) -> int:
        """Account for a slice of an open turn; return how many of its tokens count."""
        if piece.sample:
            raise InternalError(f"Turn {piece.turn_id} of the step is not known.")
        return self._book.opened.advance(piece, failed=_failed(sample), now=now)

    def _prefill(self, turn: TurnState, count: int, sample: Sample | None, now: float) -> int:
        """Move a prefill ``count`` tokens on and publish it; return how many were prefill."""
        prefilled = min(count, turn.prefill_end - turn.computed)
        turn.computed += count - 1 + len(sample.tokens) if sample is not None else count
        turn.prefilled += prefilled
        turn.program.prefilled += prefilled
        # A failed step may not have written its pages: nobody else may find them.
        if not _failed(sample):
            self._book.publish(turn, min(turn.computed, turn.prefill_end), now)
        return prefilled

    def _account(
        self, turn: TurnState, sample: Sample | None, prefilled: int, seconds: float, now: float
    ) -> FinishReason | None:
        """Charge a step to a turn and take its output; return why it ends, if it does.

        One function, not several: it runs for every turn of every step.
        """
        program = turn.state.program
        program.service += seconds
        turn.spend(now)
        reason: FinishReason | None = None
        decoded = 0
        if sample is not None:
            decoded = len(sample.tokens)
            turn.request.tokens.extend(sample.tokens)
            turn.output += decoded
            program.decoded += decoded
            self._book.counters.output_tokens += decoded
            if turn.first_token is None and decoded:
                turn.first_token = now
            if sample.tool is not None:
                turn.tool_seen = sample.tool
            reason = sample.finish
            if reason is None and turn.output >= turn.request.max_output:
                reason = "length"
        for listener in self._book.tell.progressed:
            listener.progressed(turn, prefilled, decoded, seconds, now)
        return "cancelled" if turn.cancelled else reason

    def _end_late(self, turn: TurnState, seconds: float, now: float) -> None:
        """End a turn whose end was seen one step late: its place in that step was not free."""
        turn.program.service += seconds
        for listener in self._book.tell.progressed:
            listener.progressed(turn, 0, 0, seconds, now)
        if turn.ended is not None:
            self._book.finish(turn, turn.ended, now)

    # -- reports -------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float | None:
        """Return when the passing of time alone may change a decision, if no turn ends before."""
        return self._book.next_deadline(now)

    def next_prefetch(self) -> float | None:
        """Return when KV is next to be brought back from the host, if no turn comes before."""
        prefetcher = self._book.prefetcher
        # None is while turns wait; planning at that time would begin nothing.
        return None if prefetcher is None or self._book.waiting else prefetcher.next_due()

    def statistics(self) -> SchedulerStatistics:
        """Return gauges and counters."""
        return figures(self._book)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if queues, leases, pins and pages disagree."""
        self._book.check_integrity()
