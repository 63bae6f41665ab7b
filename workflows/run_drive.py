"""Carries one run on until it ends: events into the log, then into the schedule, then what follows.

Everything is appended from one event loop, so an event and its effect on the schedule are never
torn apart, and the order of the log is the order in which the schedule saw things. Other processes
may append answers to gates meanwhile; those are read back and handled in the log's order.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio

from agentrt.errors import InternalError
from agentrt.workflows.events import (
    AskPerson,
    CancelStep,
    Command,
    EndRun,
    Event,
    StartStep,
    Wake,
)
from agentrt.workflows.log import RunLog
from agentrt.workflows.person import Nobody, Person, Question, check_answer
from agentrt.workflows.plan import Plan
from agentrt.workflows.run_attempt import Attempt, make_context
from agentrt.workflows.schedule import Schedule

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from agentrt.workflows.executor_context import Executor

__all__ = ["Drive", "DriveConfig"]

_FOREVER = math.inf


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """Seconds: between looks for answers from elsewhere, between heartbeats of running steps, and
    how long a run in which nothing but people without a deadline is waited for is held open."""

    poll: float = 0.5
    heartbeat: float = 20.0
    detach: float = 3600.0


class Drive:
    """One process's turn at a run. Made for one ``go``.

    Args:
        schedule: holds the fold of what the log has so far.
        next_index: of the first event that the schedule has not seen.
        clock: the schedule's seconds.
        wall: seconds since the epoch, for the expiry of gates.
        on_event: called after each event has been appended, before anything follows from it.
    """

    def __init__(
        self,
        plan: Plan,
        run_id: str,
        parameters: Mapping[str, str],
        *,
        schedule: Schedule,
        log: RunLog,
        executor: Executor,
        clock: Callable[[], float],
        next_index: int,
        wall: Callable[[], float] = time.time,
        person: Person | None = None,
        config: DriveConfig | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.plan = plan
        self.run_id = run_id
        self.parameters = parameters
        self.schedule = schedule
        self.executor = executor
        self.detached = False
        self._log = log
        self._clock = clock
        self._wall = wall
        self._next = next_index
        self._person = person or Nobody()
        self._config = config or DriveConfig()
        self._on_event = on_event
        self._commands: deque[Command] = deque()
        self._attempts: dict[str, Attempt] = {}
        self._consulted: set[str] = set()
        self._answered: dict[str, anyio.Event] = {}
        self._nudge = anyio.Event()
        self._wake = _FOREVER
        self._polled = self._beat = self._progress = clock()
        self._group: TaskGroup | None = None

    def watch(self, on_event: Callable[[Event], None]) -> None:
        """Have another function called with each event, after the first one."""
        before = self._on_event

        def both(event: Event) -> None:
            if before is not None:
                before(event)
            on_event(event)

        self._on_event = both

    # -- the loop --------------------------------------------------------------------------------

    async def go(self, kind: str, data: Mapping[str, Any]) -> None:
        """Append the first event (``run_started`` or ``run_resumed``) and go on to the end.

        Cancelling it stops what runs and leaves a run that can be resumed.

        Raises:
            LogFull, LogError: the log takes no more; what it holds can be resumed.
        """
        async with anyio.create_task_group() as group:
            self._group = group
            self.append(kind, None, data)
            # A restored schedule has given its alarm to a process that is gone.
            self._commands += self.schedule.tick(self._clock())
            self._settle_facts()
            while not self.schedule.state.over and not self.detached:
                self._carry_out()
                if not self.schedule.state.over:
                    await self._rest()
            group.cancel_scope.cancel()

    def _carry_out(self) -> None:
        while self._commands and not self.schedule.state.over:
            self._perform(self._commands.popleft())

    async def _rest(self) -> None:
        """Wait for something to happen, an alarm, or the time to look at the log or to beat."""
        now = self._clock()
        state = self.schedule.state
        waits_for_people = bool(state.open_gates())
        if not self._attempts and not waits_for_people and self._wake == _FOREVER:
            raise InternalError(f"Nothing is left that could move the run {self.run_id}.")
        until = min(
            self._wake,
            self._polled + self._config.poll if waits_for_people else _FOREVER,
            self._beat + self._config.heartbeat if self._attempts else _FOREVER,
        )
        with anyio.move_on_after(max(0.0, until - now)):
            await self._nudge.wait()
        self._nudge = anyio.Event()
        self._look(waits_for_people)

    def _look(self, waits_for_people: bool) -> None:
        now = self._clock()
        if now >= self._wake:
            self._wake = _FOREVER
            self._commands += self.schedule.tick(now)
            self._settle_facts()
        if waits_for_people and now >= self._polled + self._config.poll:
            self._polled = now
            self._catch_up()
        if self._attempts and now >= self._beat + self._config.heartbeat:
            self._beat = now
            for step, attempt in list(self._attempts.items()):
                self.append("lease_renewed", step, {"worker": attempt.worker})
        if waits_for_people and not self._attempts:
            idle = not self.schedule.statistics().timers
            self.detached = idle and now - self._progress > self._config.detach

    # -- events ----------------------------------------------------------------------------------

    def append(self, kind: str, step: str | None, data: Mapping[str, Any]) -> Event:
        """Append an event, and let the schedule have it and whatever others wrote before it."""
        event = self._log.append(self.run_id, kind, step, data)
        if event.index > self._next:
            for missed in self._log.events(self.run_id, self._next):
                if missed.index < event.index:
                    self._take(missed)
        self._take(event)
        self.nudge()
        return event

    def nudge(self) -> None:
        """Wake the loop."""
        self._nudge.set()

    def _catch_up(self) -> None:
        for event in self._log.events(self.run_id, self._next):
            self._take(event)

    def _take(self, event: Event) -> None:
        if event.index < self._next:
            return
        self._next = event.index + 1
        if event.kind != "lease_renewed":
            self._progress = self._clock()
        if self._on_event is not None:
            self._on_event(event)
        self._commands += self.schedule.handle(event, self._clock())
        if event.kind == "gate_answered":
            self._note_answer(str(event.data.get("gate", "")))
        self._settle_facts()

    def _settle_facts(self) -> None:
        for fact in self.schedule.take_facts():
            self.append(fact.kind, fact.step, fact.data)

    # -- commands --------------------------------------------------------------------------------

    def _perform(self, command: Command) -> None:
        match command:
            case StartStep(step, attempt):
                self._start(step, attempt)
            case CancelStep(step, reason):
                self._cancel(step, reason)
            case AskPerson():
                question = Question(
                    command.gate,
                    command.step,
                    command.question,
                    command.options,
                    command.default,
                    command.expires_in,
                )
                self.open_gate(question)
            case Wake(at):
                self._wake = at
            case EndRun(status, reason):
                self.append("run_ended", None, {"status": status, "reason": reason})

    def _start(self, step: str, number: int) -> None:
        declared = self.plan.nodes[step].step
        if declared is None:
            self._pass(step, number)
            return
        attempt = Attempt(self, declared, number)
        self.append("step_started", step, {"attempt": number, "worker": attempt.worker})
        if self.schedule.state.steps[step].status != "running" or self._group is None:
            return
        self._attempts[step] = attempt
        context = make_context(self, step, number, attempt)
        self._group.start_soon(attempt.run, context, name=attempt.worker)

    def _pass(self, step: str, number: int) -> None:
        """Go through a node that nothing is done in: ``end``, which StepFly starts like a step."""
        self.append("step_started", step, {"attempt": number, "worker": ""})
        done = {"attempt": number, "status": "succeeded", "result": {}, "edges": {}, "tokens": 0}
        self.append("step_finished", step, done)

    def _cancel(self, step: str, reason: str) -> None:
        attempt = self._attempts.get(step)
        if attempt is not None:
            attempt.cancel(reason)
            return
        number = self.schedule.state.steps[step].attempt
        self.append("step_cancelled", step, {"attempt": number, "reason": reason})

    def ended(self, attempt: Attempt) -> None:
        """Forget an attempt that has reported."""
        if self._attempts.get(attempt.step.id) is attempt:
            del self._attempts[attempt.step.id]
        self.nudge()

    # -- people ----------------------------------------------------------------------------------

    def open_gate(self, question: Question) -> None:
        """Put a question into the log, unless it is there, and ask whoever is present."""
        known = self.schedule.state.gates.get(question.gate)
        if known is None:
            self._open(question)
        elif known.answer is not None:
            return
        if question.gate not in self._consulted and self._group is not None:
            self._consulted.add(question.gate)
            self._group.start_soon(self._consult, question)

    def _open(self, question: Question) -> None:
        data = {
            "gate": question.gate,
            "question": question.text,
            "options": list(question.options),
            "default": question.default,
            "expires": self._expiry(question.expires_in),
        }
        self.append("gate_opened", question.step, data)

    def _expiry(self, seconds: float | None) -> str | None:
        if seconds is None:
            return None
        at = datetime.fromtimestamp(self._wall(), UTC) + timedelta(seconds=seconds)
        return at.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def _consult(self, question: Question) -> None:
        answer = await self._person.ask(question)
        gate = self.schedule.state.gates[question.gate]
        if answer is None or gate.answer is not None:
            return
        check_answer(gate.gate, answer, gate.options)
        data = {"gate": gate.gate, "answer": answer, "by": "person"}
        self.append("gate_answered", question.step, data)

    async def answer_to(self, question: Question) -> tuple[str, str]:
        """Ask, and wait until the gate is answered; the schedule bounds the wait."""
        self.open_gate(question)
        gate = self.schedule.state.gates[question.gate]
        if gate.answer is None:
            await self._answered.setdefault(question.gate, anyio.Event()).wait()
        return str(gate.answer), gate.by

    def _note_answer(self, gate: str) -> None:
        known = self.schedule.state.gates.get(gate)
        waiting = self._answered.get(gate)
        if waiting is not None and known is not None and known.answer is not None:
            waiting.set()
