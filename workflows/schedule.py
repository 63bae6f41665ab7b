"""Decides a guide run: events in, commands out. Pure: no clock, no files, no awaiting, no chance.

How a shell drives it:

1. It appends an event to the log, then calls ``handle(event, now)`` and carries out the commands.
2. When a ``Wake`` comes due it calls ``tick(now)`` and carries out the commands.
3. After either it calls ``take_facts()``: what the schedule has found out by itself (a step was
   skipped, a gate ran out of time). Each fact is appended to the log as an event and handed back
   through ``handle`` like any other; facts that only inform readers have no further effect.

Commands and the events that answer them: ``StartStep`` -> ``step_started``, later one
``step_finished``; ``CancelStep`` -> ``step_finished`` with status timed_out where the reason
begins with ``timeout``, else ``step_cancelled``; ``AskPerson`` -> ``gate_opened`` (unless the log
has that gate), later ``gate_answered``; ``EndRun`` -> ``run_ended``. The state depends on events
alone, so it is the fold of the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from agentrt.workflows.events import Command, EndRun, Event, RunStatus, StartStep, Wake
from agentrt.workflows.guide import END, OnConclusion
from agentrt.workflows.schedule_alarms import Alarms
from agentrt.workflows.schedule_compat import CompatScan
from agentrt.workflows.schedule_config import (
    Ending,
    Fact,
    Outbox,
    ScheduleConfig,
    ScheduleStatistics,
    outcome,
    seconds,
)
from agentrt.workflows.schedule_fold import fold
from agentrt.workflows.schedule_graph import Graph, PlanLike
from agentrt.workflows.schedule_joins import goes_on_after_conclusion
from agentrt.workflows.schedule_machine import Machine
from agentrt.workflows.schedule_state import Changes, RunState

__all__ = ["Fact", "RunState", "Schedule", "ScheduleConfig", "ScheduleStatistics", "fold"]


class Schedule:
    """One run of a plan. ``state`` is the fold of the events handled so far.

    Raises:
        GuideError: the plan's edges do not fit its steps.
    """

    def __init__(self, plan: PlanLike, config: ScheduleConfig | None = None) -> None:
        self.config = config or ScheduleConfig()
        self.graph = Graph(plan, self.config.times)
        self._machine = Machine(self.graph, compat=self.config.compat)
        self._compat = (
            CompatScan(self._machine, self.config.workers) if self.config.compat else None
        )
        self._outbox = Outbox()
        self._alarms = Alarms(self._machine, self.config, self._outbox)
        self._timers = self._alarms.timers
        self._ready: list[tuple[tuple[float, int], str]] = []
        self._starting: dict[str, int] = {}
        self._ending: Ending | None = None
        self._end_sent = False
        self._began = self._last = 0.0
        self._woken: float | None = None

    @classmethod
    def restore(
        cls,
        plan: PlanLike,
        config: ScheduleConfig,
        events: Iterable[Event],
        *,
        now: float,
        time: str | None = None,
    ) -> Schedule:
        """The schedule of a run whose process is gone. Hand it a ``run_resumed`` event next.

        Args:
            now: the present on the schedule's clock.
            time: the same moment as ISO-8601 UTC, so that gates that have expired meanwhile are
                seen to; without it the time since the last event is taken not to have passed.
        """
        schedule = cls(plan, config)
        events = list(events)
        present = seconds(time or events[-1].time) if events else 0.0
        for event in events:
            schedule.handle(event, now - (present - seconds(event.time)))
            schedule.take_facts()
        return schedule

    @property
    def state(self) -> RunState:
        """What the events have come to. Read it; only ``handle`` may change it."""
        return self._machine.state

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event that has been appended to the log; return what is to be done.

        Args:
            now: seconds on a clock that does not run back.
        """
        changes = self._machine.apply(event)
        self._follow(event, changes, now)
        self._last = now
        return self._decide(now)

    def tick(self, now: float) -> list[Command]:
        """Let time pass: timeouts, the end of pauses, budgets. Calling it too often is harmless."""
        self._woken = None
        for kind, key in self._alarms.ring(now):
            if kind == "retry":
                self._enqueue(key)
            elif kind == "wall":
                limit = self.config.wall_seconds
                self._wind_up("timed_out", f"more than {limit:g} s", "cancel")
        if self._compat and self._ending is None and self.state.started and not self.state.over:
            self._scan(self._compat, now)
        return self._decide(now)

    def stop(self, status: RunStatus, reason: str, now: float) -> list[Command]:
        """Wind the run up at once: cancel what is under way, then end with this status.

        A conclusion that has been reached stands, unless the status is cancelled.
        """
        self._wind_up(status, reason, "cancel")
        return self._decide(now)

    def take_facts(self) -> list[Fact]:
        """What the schedule found out since the last call, oldest first."""
        facts, self._outbox.facts = self._outbox.facts, []
        return facts

    # -- what followed from an event -------------------------------------------------------------

    def _follow(self, event: Event, changes: Changes, now: float) -> None:
        for step in changes.stopped:
            self._alarms.ended(step)
        if event.kind == "run_resumed":
            self._resume(now)
            return
        for step in changes.started:
            self._alarms.started(step, now)
        for step in changes.ready:
            self._enqueue(step)
        for step in changes.gates:
            self._alarms.ask(step, now)
        for step in changes.retries:
            self._alarms.pause(step, now)
        for step, reason in changes.skipped:
            self._skipped(step, reason)
        self._arm(event, now)

    def _arm(self, event: Event, now: float) -> None:
        step = event.step or ""
        match event.kind:
            case "run_started":
                self._began = now
                self._watch_wall()
            case "step_started":
                if self._starting.pop(step, None) is not None and step in self.state.waiting:
                    self._enqueue(step)  # Not the attempt that was asked for.
            case "lease_renewed" if step in self.state.running:
                self._alarms.renewed(step, now)
            case "gate_opened":
                self._alarms.gate_opened(event, now)
            case "gate_answered":
                self._alarms.gate_answered(event, now)

    def _enqueue(self, step: str) -> None:
        heapq.heappush(self._ready, (self.graph.priority(step), step))

    def _skipped(self, step: str, reason: str) -> None:
        self._outbox.facts.append(Fact("step_skipped", step, {"reason": reason}))

    def _resume(self, now: float) -> None:
        """The commands given before the crash are lost: give again those that still hold."""
        self._began += now - self._last
        self._watch_wall()
        self._starting.clear()
        self._alarms.resume()
        self._ready.clear()
        self._end_sent = False
        self._woken = None
        for step in self.state.waiting:
            waits_for = self.state.steps[step].waits_for
            if waits_for == "gate":
                self._alarms.ask(step, now)
            elif waits_for == "worker" or self._timers.at("retry", step) is None:
                self._enqueue(step)

    def _watch_wall(self) -> None:
        if self.config.wall_seconds is not None:
            self._timers.set("wall", "", self._began + self.config.wall_seconds)

    # -- commands --------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Command]:
        if self.state.started and not self.state.over:
            self._review()
            self._start(now)
            self._finish(now)
            self._wake(now)
        commands, self._outbox.commands = self._outbox.commands, []
        return commands

    def _review(self) -> None:
        """Wind up when the end was reached or the tokens are spent."""
        state, limit = self.state, self.config.budget_tokens
        if state.conclusions and self._ending is None and not self.config.compat:
            edges = ", ".join(state.conclusions)
            self._wind_up("succeeded", f"end was reached by {edges}", self.graph.on_conclusion)
        elif limit is not None and state.tokens > limit and not self._winding("cancel"):
            self._wind_up("failed", f"{state.tokens} tokens used of {limit}", "cancel")

    def _winding(self, how: OnConclusion) -> bool:
        return self._ending is not None and self._ending.how == how

    def _wind_up(self, status: RunStatus, reason: str, how: OnConclusion) -> None:
        self._ending = Ending(status, reason, how)
        if how == "finish-join":
            self._ending.allowed = goes_on_after_conclusion(self.graph, self.state)

    def _start(self, now: float) -> None:
        self._cancel_unwanted(now)
        if self._compat:
            return
        while self._ready and len(self.state.running) + len(self._starting) < self.config.workers:
            step = heapq.heappop(self._ready)[1]
            state = self.state.steps[step]
            if state.status != "waiting" or state.waits_for == "gate" or step in self._starting:
                continue
            if self._may_start(step):
                self._begin(step)

    def _begin(self, step: str) -> None:
        attempt = self.state.steps[step].attempt + 1
        self._starting[step] = attempt
        self._outbox.commands.append(StartStep(step, attempt))

    def _may_start(self, step: str) -> bool:
        return self._ending is None or step in self._ending.allowed

    def _cancel_unwanted(self, now: float) -> None:
        ending = self._ending
        if ending is None or ending.how == "drain":
            return
        for step in self.state.running:
            if step not in ending.allowed and step not in self._alarms.cancelling:
                self._alarms.cancel(step, ending.reason, now)

    def _finish(self, now: float) -> None:
        if self._end_sent or self.state.running or self._starting:
            return
        if self._ending is not None:
            if any(step in self._ending.allowed for step in self.state.waiting):
                return
            # What was reached stands, also where it came in after a budget had run out.
            reached = self.state.steps[END].status == "succeeded"
            kept = reached and self._ending.status != "cancelled"
            self._end(*(outcome(self.state) if kept else self._ending.result))
        elif not self.state.waiting and not self._compat:
            self._end(*outcome(self.state))

    def _end(self, status: RunStatus, reason: str) -> None:
        self._end_sent = True
        self._outbox.commands.append(EndRun(status, reason))

    def _wake(self, now: float) -> None:
        at = self._timers.next()
        if at is not None and at != self._woken and not self._end_sent:
            self._woken = at
            self._outbox.commands.append(Wake(at))

    def _scan(self, compat: CompatScan, now: float) -> None:
        found = compat.scan(self._starting)
        for step, reason in found.skipped:
            self._skipped(step, reason)
        for step in found.start:
            self._begin(step)
        if found.ended:
            fine = self.state.steps[END].status == "succeeded"
            self._wind_up("succeeded" if fine else "failed", "end has finished", "cancel")
        elif found.done:
            self._wind_up(*outcome(self.state), "cancel")
        if not self._end_sent:
            self._timers.set("poll", "", now + self.config.poll)

    # -- inspection ------------------------------------------------------------------------------

    def waits(self) -> dict[str, str]:
        """Why each waiting step does not get on, by step: worker, gate or retry."""
        return {step: self.state.steps[step].waits_for for step in self.state.waiting}

    def statistics(self) -> ScheduleStatistics:
        """How far the run is."""
        state = self.state
        return ScheduleStatistics(
            steps=dict(+state.counts),
            running=len(state.running),
            starting=len(self._starting),
            ready=len(self._ready),
            timers=len(self._timers),
            tokens=state.tokens,
            ignored=state.ignored,
        )

    def check_integrity(self) -> None:
        """Count everything again.

        Raises:
            InternalError: a counter or set disagrees with what it counts.
        """
        self.state.check_integrity(self.graph)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{count} {status}" for status, count in sorted((+self.state.counts).items())
        )
        return f"<Schedule [{self.state.status}] {counts}>"
