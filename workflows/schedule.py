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
has that gate), later ``gate_answered``; ``EndRun`` -> ``run_ended``. The state depends on events alone, so it is the fold of the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from agentrt.errors import ConfigError
from agentrt.workflows.events import (
    AskPerson,
    CancelStep,
    Command,
    EndRun,
    Event,
    RunStatus,
    StartStep,
    Wake,
)
from agentrt.workflows.guide import END
from agentrt.workflows.schedule_compat import CompatScan
from agentrt.workflows.schedule_graph import Graph, PlanLike
from agentrt.workflows.schedule_joins import goes_on_after_conclusion
from agentrt.workflows.schedule_machine import APPROVE, Changes, Machine
from agentrt.workflows.schedule_state import RunState
from agentrt.workflows.schedule_timers import Timers, backoff

__all__ = ["Fact", "RunState", "Schedule", "ScheduleConfig", "ScheduleStatistics", "fold"]

Winding: TypeAlias = Literal["cancel", "drain", "finish-join"]


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How a run is scheduled. Times are seconds.

    Args:
        workers: steps under way at once, at least 1.
        compat: StepFly's semantics, driven by ticks (see ``schedule_compat``).
        budget_tokens: tokens of all attempts together after which the run is stopped.
        wall_seconds: time after which the run is stopped; time between a crash and the resume
            does not count.
        seed: of the jitter of retries.
        times: expected seconds per step, which decide who goes first when workers are short.
        grace: how long a cancelled step may take to stop before it is written off.
        lease: how long after a ``lease_renewed`` its worker counts as lost. A worker that has
            never renewed its lease is not watched.
        ask_seconds: how long a person has to say whether a step that must not run twice may be
            repeated; then it is not. None waits for ever.
        poll: seconds between the ticks of compatibility mode.
    """

    workers: int = 5
    compat: bool = False
    budget_tokens: int | None = None
    wall_seconds: float | None = None
    seed: int = 0
    times: Mapping[str, float] = field(default_factory=dict)
    grace: float = 30.0
    lease: float = 60.0
    ask_seconds: float | None = 3600.0
    poll: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(
                f"A run cannot have {self.workers} workers.", remedy="Give it at least 1."
            )


@dataclass(frozen=True, slots=True)
class Fact:
    """Something the schedule found out by itself, to be appended to the log and handed back."""

    kind: str
    step: str | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScheduleStatistics:
    """How far a run is. ``ignored`` counts late, duplicate and out-of-turn events."""

    steps: Mapping[str, int]
    running: int
    starting: int
    ready: int
    timers: int
    tokens: int
    ignored: int


@dataclass(slots=True)
class _Ending:
    """The run is being wound up: which steps may still start, and what it will end as."""

    status: RunStatus
    reason: str
    how: Winding
    allowed: set[str] = field(default_factory=set)


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
        self._timers = Timers()
        self._ready: list[tuple[tuple[float, int], str]] = []
        self._starting: dict[str, int] = {}
        self._cancelling: set[str] = set()
        self._paused: dict[str, float] = {}
        self._ending: _Ending | None = None
        self._end_sent = False
        self._out: list[Command] = []
        self._facts: list[Fact] = []
        self._began = self._last = 0.0
        self._woken: float | None = None
        self._rings: dict[str, Callable[[str, float], None]] = {
            "timeout": self._ring_timeout,
            "kill": self._ring_kill,
            "retry": self._ring_retry,
            "gate": self._ring_gate,
            "lease": self._ring_lease,
            "wall": self._ring_wall,
            "poll": lambda key, now: None,
        }

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
            schedule._facts.clear()
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
        for kind, key in self._timers.due(now):
            self._rings[kind](key, now)
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
        facts, self._facts = self._facts, []
        return facts

    # -- what followed from an event -------------------------------------------------------------

    def _follow(self, event: Event, changes: Changes, now: float) -> None:
        for step in changes.stopped:
            self._forget(step)
        for step in changes.ready:
            heapq.heappush(self._ready, (self.graph.priority(step), step))
        for step in changes.gates:
            self._ask(step, now)
        for step in changes.retries:
            self._pause(step, now)
        for step, reason in changes.skipped:
            self._facts.append(Fact("step_skipped", step, {"reason": reason}))
        self._arm(event, now)

    def _arm(self, event: Event, now: float) -> None:
        step = event.step or ""
        match event.kind:
            case "run_started":
                self._began = now
                self._watch_wall()
            case "run_resumed":
                self._resume(now)
            case "step_started":
                self._starting.pop(step, None)
                state = self.state.steps.get(step)
                if state and state.status == "running" and self._timers.at("timeout", step) is None:
                    self._timers.set("timeout", step, now + self.graph.policies[step].timeout)
            case "lease_renewed" if step in self.state.running:
                self._timers.set("lease", step, now + self.config.lease)
            case "gate_opened":
                self._gate_opened(event, now)
            case "gate_answered":
                self._gate_answered(event, now)

    def _forget(self, step: str) -> None:
        for kind in ("timeout", "kill", "lease"):
            self._timers.drop(kind, step)
        self._cancelling.discard(step)
        self._paused.pop(step, None)

    def _pause(self, step: str, now: float) -> None:
        state = self.state.steps[step]
        retry = self.graph.policies[step].retry
        wait = backoff(retry, state.failures, seed=self.config.seed, step=step)
        self._timers.set("retry", step, now + wait)
        data = {"attempt": state.attempt, "wait": wait, "error": state.error}
        self._facts.append(Fact("step_retried", step, data))

    def _resume(self, now: float) -> None:
        """The commands given before the crash are lost: give again those that still hold."""
        self._began += now - self._last
        self._starting.clear()
        self._cancelling.clear()
        self._paused.clear()
        self._end_sent = False
        self._watch_wall()
        for step in self.state.waiting:
            if self.state.steps[step].waits_for == "gate":
                self._ask(step, now)
        if self._ending is None or not self.state.conclusions:
            self._ending = None
        self._ready = []
        for step in self.state.waiting:
            waits_for = self.state.steps[step].waits_for
            paused = waits_for == "retry" and self._timers.at("retry", step) is not None
            if waits_for != "gate" and not paused:
                heapq.heappush(self._ready, (self.graph.priority(step), step))

    def _watch_wall(self) -> None:
        if self.config.wall_seconds is not None:
            self._timers.set("wall", "", self._began + self.config.wall_seconds)

    # -- gates -----------------------------------------------------------------------------------

    def _ask(self, step: str, now: float) -> None:
        state, policy = self.state.steps[step], self.graph.policies[step]
        again = state.attempt > 0
        default = "deny" if again else policy.gate_default
        limit = policy.gate_timeout
        if again and limit is None:
            limit = self.config.ask_seconds
        question = f"May {step} start?"
        if again:
            question = f"{step} must not be repeated unasked, and {state.error}. Run it again?"
        at = self._timers.at("gate", state.gate)
        if at is None and limit is not None:
            at = now + limit
            self._timers.set("gate", state.gate, at)
        left = None if at is None else max(0.0, at - now)
        self._out.append(AskPerson(step, state.gate, question, APPROVE, default, left))

    def _gate_opened(self, event: Event, now: float) -> None:
        gate = str(event.data.get("gate", ""))
        expires = event.data.get("expires")
        known = self.state.gates.get(gate)
        if known is None or known.answer is not None:
            return
        if isinstance(expires, str) and self._timers.at("gate", gate) is None:
            self._timers.set("gate", gate, now + seconds(expires) - seconds(event.time))
        step = event.step or ""
        if self.state.steps[step].waits_for == "question":
            # A person's time is not the step's: its timeout stands still meanwhile.
            deadline = self._timers.drop("timeout", step)
            if deadline is not None:
                self._paused[step] = max(0.0, deadline - now)

    def _gate_answered(self, event: Event, now: float) -> None:
        gate = self.state.gates.get(str(event.data.get("gate", "")))
        if gate is None or gate.answer is None:
            return
        self._timers.drop("gate", gate.gate)
        left = self._paused.pop(gate.step, None)
        if left is not None:
            self._timers.set("timeout", gate.step, now + left)

    # -- alarms ----------------------------------------------------------------------------------

    def _ring_timeout(self, step: str, now: float) -> None:
        self._cancel(step, f"timeout: more than {self.graph.policies[step].timeout:g} s", now)

    def _ring_kill(self, step: str, now: float) -> None:
        """A cancelled step has not stopped. It may still run somewhere: no further attempt."""
        attempt = self.state.steps[step].attempt
        error = f"it could not be stopped within {self.config.grace:g} s"
        data = {"attempt": attempt, "status": "timed_out", "error": error, "edges": {}}
        self._facts.append(Fact("step_finished", step, {**data, "final": True}))

    def _ring_retry(self, step: str, now: float) -> None:
        if self.state.steps[step].waits_for == "retry":
            heapq.heappush(self._ready, (self.graph.priority(step), step))

    def _ring_gate(self, gate: str, now: float) -> None:
        known = self.state.gates.get(gate)
        if known is None:
            # Not yet in the log: ask again shortly rather than answer what nobody was asked.
            self._timers.set("gate", gate, now + 1.0)
        elif known.answer is None:
            answer = {"gate": gate, "answer": known.default, "by": "default"}
            self._facts.append(Fact("gate_answered", known.step, answer))

    def _ring_lease(self, step: str, now: float) -> None:
        state = self.state.steps[step]
        self._cancel(step, "its worker was lost", now)
        lost = {"worker": state.worker, "attempt": state.attempt}
        self._facts.append(Fact("lease_lost", step, lost))

    def _ring_wall(self, key: str, now: float) -> None:
        self._wind_up("timed_out", f"more than {self.config.wall_seconds:g} s", "cancel")

    # -- commands --------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Command]:
        if self.state.started and not self.state.over:
            self._review()
            self._start(now)
            self._finish(now)
            self._wake(now)
        out, self._out = self._out, []
        return out

    def _review(self) -> None:
        """Wind up when the end was reached or the tokens are spent."""
        state, limit = self.state, self.config.budget_tokens
        if state.conclusions and self._ending is None and not self.config.compat:
            edges = ", ".join(state.conclusions)
            self._wind_up("succeeded", f"end was reached by {edges}", self.graph.on_conclusion)
        elif limit is not None and state.tokens > limit and not self._winding("cancel"):
            self._wind_up("failed", f"{state.tokens} tokens used of {limit}", "cancel")

    def _winding(self, how: Winding) -> bool:
        return self._ending is not None and self._ending.how == how

    def _wind_up(self, status: RunStatus, reason: str, how: Winding) -> None:
        if self.state.conclusions and status != "cancelled" and not self.config.compat:
            status = "succeeded"
        allowed = (
            goes_on_after_conclusion(self.graph, self.state) if how == "finish-join" else set()
        )
        self._ending = _Ending(status, reason, how, allowed)

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
        self._out.append(StartStep(step, attempt))

    def _may_start(self, step: str) -> bool:
        return self._ending is None or step in self._ending.allowed

    def _cancel_unwanted(self, now: float) -> None:
        ending = self._ending
        if ending is None or ending.how == "drain":
            return
        for step in self.state.running:
            if step not in ending.allowed and step not in self._cancelling:
                self._cancel(step, ending.reason, now)

    def _cancel(self, step: str, reason: str, now: float) -> None:
        self._cancelling.add(step)
        self._timers.drop("timeout", step)
        self._timers.set("kill", step, now + self.config.grace)
        self._out.append(CancelStep(step, reason))

    def _finish(self, now: float) -> None:
        if self._end_sent or self.state.running or self._starting:
            return
        if self._ending is not None:
            if any(step in self._ending.allowed for step in self.state.waiting):
                return
            self._end(self._ending.status, self._ending.reason)
        elif not self.state.waiting and not self._compat:
            self._end(*outcome(self.state))

    def _end(self, status: RunStatus, reason: str) -> None:
        self._end_sent = True
        self._out.append(EndRun(status, reason))

    def _wake(self, now: float) -> None:
        at = self._timers.next()
        if at is not None and at != self._woken and not self._end_sent:
            self._woken = at
            self._out.append(Wake(at))

    def _scan(self, compat: CompatScan, now: float) -> None:
        found = compat.scan(self._starting)
        for step, reason in found.skipped:
            self._facts.append(Fact("step_skipped", step, {"reason": reason}))
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


def outcome(state: RunState) -> tuple[RunStatus, str]:
    """What a run in which nothing more can happen has come to."""
    if state.steps[END].status == "succeeded":
        return "succeeded", f"end was reached by {', '.join(state.conclusions)}"
    if failed := state.failed_steps():
        return "failed", f"end cannot be reached: {', '.join(failed)} failed"
    return "inconclusive", "no enabled edge leads to end"


def seconds(time: str) -> float:
    """ISO-8601 UTC as seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()


def fold(plan: PlanLike, events: Iterable[Event], *, compat: bool = False) -> RunState:
    """The state that these events come to, whatever schedule they were made by.

    Args:
        compat: the run was made in compatibility mode.
    """
    machine = Machine(Graph(plan), compat=compat)
    for event in events:
        machine.apply(event)
    return machine.state
