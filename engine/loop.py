"""What the engine's thread does, cycle by cycle, until it is closed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from agentrt.engine.backend import TurnBackend
from agentrt.engine.choices import ChoiceTrie
from agentrt.engine.faults import Fault, FaultWatch, RestartLimits
from agentrt.engine.flight import Flight, Landed
from agentrt.engine.outbox import Outbox
from agentrt.engine.output import TurnOutput
from agentrt.engine.params import SamplingParams
from agentrt.engine.readout import Readout
from agentrt.engine.restart import Restarter
from agentrt.engine.statistics import EngineState, EngineStatistics
from agentrt.engine.stream import TurnStream
from agentrt.engine.tiers.base import PageMover
from agentrt.errors import (
    AgentRTError,
    BackendUnavailable,
    EngineFault,
    InternalError,
    InvalidRequest,
)
from agentrt.scheduling.plan import (
    Event,
    OpenRequest,
    SchedulerProtocol,
    StepPlan,
    TurnFinished,
    TurnRequest,
)

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.matcher import CompiledGrammar

__all__ = ["EngineLoop"]

_logger = logging.getLogger(__name__)

_AHEAD = SamplingParams(max_tokens=1, temperature=0.0)
"""An open turn samples nothing; its sealed turn brings its own."""
_IDLE_WAIT = 1.0
"""Seconds between looks around while there is no turn at all; a command ends the wait at once."""
_STALL_WAIT = 0.01
"""Seconds until the scheduler is asked again after it had turns but nothing to run."""


@dataclass(frozen=True, slots=True, eq=False)
class _Submit:
    request: TurnRequest
    prompt: Sequence[int]
    sampling: SamplingParams
    forced: Sequence[int] | None
    choices: ChoiceTrie | None
    grammar: CompiledGrammar | None
    output: TurnOutput
    stream: TurnStream
    at: float
    opened: str | None
    adapter: Adapter | None

    def open(self, backend: TurnBackend) -> None:
        """Make the turn known to the backend."""
        asked = (self.prompt, self.sampling, self.forced, self.choices, self.grammar, self.adapter)
        backend.open(self.request.turn_id, *asked)


_Call: TypeAlias = Callable[[SchedulerProtocol, float], object]


class EngineLoop:
    """Owns scheduler and backend. ``run`` is the thread; other public methods only post to it.

    ``overlap``: launch a step before the last one's tokens are read, where it can be done.
    ``preempt``: give up a step of much prefill when a turn comes that the next step could prefill
    whole; that one runs to its end, so that half of the steps do whatever comes.
    """

    def __init__(
        self,
        scheduler: SchedulerProtocol,
        backend: TurnBackend,
        *,
        clock: Callable[[], float],
        on_event: Callable[[Event], None] | None,
        check: bool,
        called_tool: Callable[[str], str | None] | None = None,
        mover: PageMover | None = None,
        limits: RestartLimits | None = None,
        overlap: bool = False,
        preempt: bool = False,
    ) -> None:
        faults = FaultWatch(limits)
        self._flight = Flight(scheduler, backend, faults, clock, early=overlap)
        self._restarter = Restarter(scheduler, backend, mover, faults, clock)
        self._scheduler = scheduler
        self._mover = mover
        self._backend = backend
        self._clock = clock
        self._on_event = on_event
        self._check = check
        self._turns = Readout(called_tool)
        self._ahead: set[str] = set()
        self._stalled = self._busy = False
        self._restarting = False
        self._given_up = False
        self._weighed = 0
        if preempt:
            backend.give_up_when(self._unwanted)
        # Shared with other threads, under the condition's lock:
        self._changed = threading.Condition()
        self._commands: deque[_Submit | _Call] = deque()
        self._deadline: float | None = None
        self._state: EngineState = "running"
        self._cause = ""
        # Replaced whole by the thread, read by anyone:
        tier = None if mover is None else mover.statistics()
        self._figures = EngineStatistics("running", scheduler.statistics(), tier=tier)

    # --- posting, from any thread ---------------------------------------------------------------

    def submit(
        self,
        request: TurnRequest,
        prompt: Sequence[int],
        sampling: SamplingParams,
        forced: Sequence[int] | None,
        choices: ChoiceTrie | None,
        output: TurnOutput,
        stream: TurnStream,
        grammar: CompiledGrammar | None = None,
        opened: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Post a turn, which may seal the open turn ``opened``.

        ``stream.answer`` is called once it is taken or refused.

        Raises:
            BackendUnavailable: the engine takes no more turns.
        """
        with self._changed:
            if self._state != "running":
                raise self._unavailable()
            # Waiting begins here, not when the step that is under way has ended.
            at = self._clock()
            self._commands.append(
                _Submit(
                    request,
                    prompt,
                    sampling,
                    forced,
                    choices,
                    grammar,
                    output,
                    stream,
                    at,
                    opened,
                    adapter,
                )
            )
            self._changed.notify()

    def call(self, function: _Call) -> None:
        """Have ``function(scheduler, now)`` called before the next plan."""
        with self._changed:
            if self._state in ("running", "closing"):
                self._commands.append(function)
                self._changed.notify()

    def open(
        self, request: OpenRequest, prompt: Sequence[int], adapter: Adapter | None = None
    ) -> None:
        """Have a prompt computed ahead while it grows. It is advice: what fails is only logged."""

        def begin(scheduler: SchedulerProtocol, now: float) -> None:
            self._backend.open(request.turn_id, prompt, _AHEAD, adapter=adapter)
            self._ahead.add(request.turn_id)
            scheduler.open(request)

        self._advise(request.turn_id, begin)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace what follows the first ``keep`` tokens of an open turn, if it is known."""

        def change(scheduler: SchedulerProtocol, now: float) -> None:
            if turn_id in self._ahead:
                self._backend.revise(turn_id, keep, tokens)
                scheduler.revise(turn_id, keep, tokens, now)

        self._advise(turn_id, change)

    def close_opened(self, turn_id: str) -> None:
        """Forget an open turn; unknown ids are ignored."""
        self.call(lambda scheduler, now: self._drop_ahead(turn_id))

    def _advise(self, turn_id: str, function: _Call) -> None:
        def guarded(scheduler: SchedulerProtocol, now: float) -> None:
            try:
                function(scheduler, now)
            except InternalError:
                raise
            except Exception:
                # If it is the request's fault, its sealed turn will be refused for the same reason.
                _logger.warning("Open turn %s is not computed ahead", turn_id, exc_info=True)
                self._drop_ahead(turn_id)

        self.call(guarded)

    def _drop_ahead(self, turn_id: str) -> None:
        if turn_id in self._ahead:
            self._ahead.discard(turn_id)
            self._backend.close(turn_id)
            self._scheduler.close(turn_id, self._clock())

    def cancel(self, turn_id: str) -> None:
        """Have a turn end at the next commit."""
        self.call(lambda scheduler, now: scheduler.cancel(turn_id, now))

    def close(self, deadline: float) -> None:
        """Take no more turns; cancel those still open at ``deadline``, then end the thread."""
        with self._changed:
            if self._state == "running":
                self._state = "closing"
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._changed.notify()

    def statistics(self) -> EngineStatistics:
        """Return the figures of the last step."""
        running = self._state == "running"
        state: EngineState = "restarting" if running and self._restarting else self._state
        return replace(self._figures, state=state)

    def _unavailable(self) -> BackendUnavailable:
        if self._state == "broken":
            return BackendUnavailable(
                f"The engine has stopped after an internal error: {self._cause}.",
                remedy="Start it again; if it stops again, please report its log.",
            )
        return BackendUnavailable(
            "The engine is shutting down.", remedy="Send the turn again once it is back."
        )

    # --- the thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Cycle until closed. An exception of the scheduler ends every turn and the engine."""
        try:
            if self._mover is not None:
                self._mover.start(self._wake)
            while self._cycle():
                pass
            self._end("closed")
        except EngineFault as error:
            _logger.error("The engine stops: %s", error.message)
            self._end("broken", error.message.rstrip("."))
        except Exception as error:
            _logger.exception("The engine stops: its scheduler or its own code raised")
            self._end("broken", f"{type(error).__name__}: {error}")

    def _wake(self) -> None:
        """End the thread's wait, if it waits. Any thread may call this."""
        with self._changed:
            self._changed.notify()

    def _cycle(self) -> bool:
        """Do one round; False once closed and empty."""
        commands, deadline = self._take()
        self._obey(commands)
        if deadline is not None:
            if not self._turns:
                return False
            if self._clock() >= deadline:
                self._cancel_all()
        self._note_copies()
        if self._flight or self._launch():
            self._flight.follow()
            self._step()
        return True

    def _launch(self) -> bool:
        """Plan a step and launch it; False if there is nothing to run."""
        plan = self._scheduler.plan(self._clock())
        if self._mover is not None:
            self._mover.begin(plan.transfers)
        self._busy = bool(plan.slices)
        self._stalled = not self._busy
        if self._busy:
            self._flight.launch(plan)
        else:
            self._deliver(self._scheduler.take_events(), plan, None)
        return self._busy

    def _unwanted(self) -> bool:
        """Whether the step that is being launched keeps a turn waiting that could start now.

        Called in the engine's thread. Each turn that came meanwhile is weighed once.
        """
        if self._given_up:
            return False
        with self._changed:
            came = [self._commands[i] for i in range(self._weighed, len(self._commands))]
        self._weighed += len(came)
        turns = (command.request for command in came if isinstance(command, _Submit))
        return any(self._scheduler.welcomes(request) for request in turns)

    def _note_copies(self) -> None:
        """Tell the scheduler which copies between the tiers are over."""
        if self._mover is None:
            return
        over = self._mover.take_over()
        if over.done or over.failed:
            self._scheduler.transferred(over.done, self._clock(), over.failed)

    def _take(self) -> tuple[list[_Submit | _Call], float | None]:
        """Return the commands posted since; wait a bounded time where there is nothing to do."""
        with self._changed:
            if not self._commands and self._turns and self._stalled:
                self._changed.wait(_STALL_WAIT)
            elif not (self._commands or self._turns or self._busy) and self._deadline is None:
                self._changed.wait(self._idle_seconds())
            commands = list(self._commands)
            self._commands.clear()
            self._weighed = 0
            return commands, self._deadline

    def _idle_seconds(self) -> float:
        """Return how long there may be nothing to do: until KV is to be brought from the host."""
        due = self._scheduler.next_prefetch()
        return _IDLE_WAIT if due is None else min(max(due - self._clock(), 0.0), _IDLE_WAIT)

    def _obey(self, commands: list[_Submit | _Call]) -> None:
        for index, command in enumerate(commands):
            try:
                if isinstance(command, _Submit):
                    self._open(command)
                else:
                    command(self._scheduler, self._clock())
            except BaseException:
                # Nobody may be left waiting for an answer: _end refuses what is queued here.
                with self._changed:
                    self._commands.extendleft(reversed(commands[index:]))
                raise

    def _open(self, command: _Submit) -> None:
        turn_id = command.request.turn_id
        refusal = self._try_open(command)
        if refusal is None:
            hinted = command.request.next_tool is not None
            self._turns.add(turn_id, command.stream, command.output, hinted=hinted)
        if not command.stream.bridge.post(command.stream.answer, refusal) and refusal is None:
            self._scheduler.cancel(turn_id, self._clock())

    def _try_open(self, command: _Submit) -> AgentRTError | None:
        """Open a turn in backend and scheduler; return what either refuses it with."""
        turn_id = command.request.turn_id
        if turn_id in self._turns:
            return InvalidRequest(
                f"The turn id {turn_id!r} is in use.", remedy="Give every turn an id of its own."
            )
        try:
            command.open(self._backend)
        except AgentRTError as error:
            return error
        except Exception as error:
            _logger.exception("The backend could not open turn %s", turn_id)
            return InternalError(f"The backend could not open the turn: {error!r}.")
        try:
            self._scheduler.submit(command.request, command.at, command.opened)
        except InternalError:
            raise
        except AgentRTError as error:
            self._backend.close(turn_id)
            return error
        finally:
            if command.opened is not None:
                self._drop_ahead(command.opened)
        return None

    def _cancel_all(self) -> None:
        for turn_id in self._turns:
            self._scheduler.cancel(turn_id, self._clock())

    def _step(self) -> None:
        """See the oldest step that is under way to its end."""
        landed = self._flight.land(self._turns.over)
        self._commit(landed)
        if landed.fault is not None:
            while self._flight:  # turns that this fault has left alone may have got on
                self._commit(self._flight.land(self._turns.over))
            self._start_anew(landed.fault)
        if self._check:
            self._scheduler.check_integrity()

    def _commit(self, landed: Landed) -> None:
        if landed.fault is not None:
            self._figures = replace(self._figures, failed_steps=self._figures.failed_steps + 1)
        self._given_up = landed.result.abandoned
        if self._given_up:
            given_up = self._figures.abandoned_steps + 1
            self._figures = replace(self._figures, abandoned_steps=given_up)
        result = self._turns.read(landed.result, self._ahead)
        events = self._scheduler.commit(landed.plan, result, self._clock())
        seconds = self._flight.close(landed)
        self._deliver([*events, *self._scheduler.take_events()], landed.plan, seconds)

    def _start_anew(self, fault: Fault) -> None:
        """Forget all KV and have the backend rebuilt; turns that were not in the step survive.

        Raises:
            EngineFault: that has happened too often, or the backend could not be rebuilt.
        """

        def tell(fault: Fault) -> None:
            self._figures = replace(self._figures, fault=fault.text)

        self._restarting = True
        self._restarter.restart(fault, tell)
        self._figures = replace(self._figures, restarts=self._figures.restarts + 1)
        self._restarting = False
        self._deliver(self._scheduler.take_events(), StepPlan(()), None)

    # --- handing out ----------------------------------------------------------------------------

    def _deliver(self, events: Sequence[Event], plan: StepPlan, seconds: float | None) -> None:
        """Hand out what the step brought; who sees it sees it in the statistics, too."""
        outbox = self._collect(events, plan)
        try:
            self._count(plan.tokens, seconds)
        finally:
            # Finished turns are known to nobody else by now: their readers must hear of it.
            for turn_id in outbox.send():
                self._scheduler.cancel(turn_id, self._clock())

    def _collect(self, events: Sequence[Event], plan: StepPlan) -> Outbox:
        outbox = Outbox()
        for event in events:
            if isinstance(event, TurnFinished) and self._turns.finish(event.stats, outbox):
                self._backend.close(event.stats.turn_id)
            self._tell(event)
        self._turns.hand_out(plan, outbox)
        return outbox

    def _tell(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            _logger.exception("on_event raised for %s", type(event).__name__)
            self._figures = replace(
                self._figures, callback_errors=self._figures.callback_errors + 1
            )

    def _count(self, tokens: int, seconds: float | None) -> None:
        """Renew the figures; ``seconds`` is None if no step was run."""
        old = self._figures
        ran = seconds is not None
        self._figures = replace(
            old,
            turns=len(self._turns),
            steps=old.steps + ran,
            overlapped_steps=self._flight.overlapped,
            step_seconds=old.step_seconds + (seconds or 0.0),
            last_step_seconds=seconds if seconds is not None else old.last_step_seconds,
            last_step_tokens=tokens if ran else old.last_step_tokens,
            scheduler=self._scheduler.statistics(),
            tier=None if self._mover is None else self._mover.statistics(),
        )

    def _end(self, state: EngineState, cause: str = "") -> None:
        """Refuse what is queued and fail what is open; nobody is left waiting."""
        with self._changed:
            self._state, self._cause = state, cause
            commands, self._commands = self._commands, deque()
        for command in commands:
            if isinstance(command, _Submit):
                command.stream.bridge.post(command.stream.answer, self._unavailable())
        self._turns.give_up(f"The engine has stopped: {cause}")
        self._figures = replace(self._figures, turns=0)
        if self._mover is not None:
            self._mover.close(save=state == "closed")
