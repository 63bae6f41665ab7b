"""Replay: a recorded run gone through again, event by event, without one live call.

The schedule must give every command that the log shows was carried out, and each attempt that
ended by itself must come to the same result and decisions when it is handed its recorded calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentrt.errors import AgentRTError
from agentrt.workflows.decide import Decision, check_total
from agentrt.workflows.events import AskPerson, EndRun, Event, StartStep
from agentrt.workflows.executor_context import (
    CallKind,
    Executor,
    Live,
    StepContext,
    check_result,
    digest,
    raise_recorded,
)
from agentrt.workflows.person import Question
from agentrt.workflows.plan import Plan
from agentrt.workflows.run_attempt import step_context
from agentrt.workflows.schedule import Schedule, ScheduleConfig

__all__ = ["ReplayDivergence", "Replayed", "replay_events"]

_CALLS = ("model_called", "tool_called", "query_run")


class ReplayDivergence(AgentRTError, RuntimeError):
    """A replay came to something else than was recorded, at the event of this ``index``."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(
            f"The replay diverges at event {index}: {message}.",
            remedy="The guide, its code or its data changed since; fork the run to go on.",
        )
        self.index = index


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay that agreed: how many events, attempts and recorded calls were gone through."""

    events: int
    attempts: int
    calls: int


async def replay_events(
    plan: Plan,
    run_id: str,
    events: Sequence[Event],
    executor: Executor,
    config: ScheduleConfig,
) -> Replayed:
    """Go through the events.

    Raises:
        ReplayDivergence: at the first event that does not follow any more.
    """
    replay = _Replay(plan, run_id, executor, config, events)
    for event in events:
        await replay.step(event)
    return Replayed(len(events), replay.attempts, replay.calls)


class _Replay:
    def __init__(
        self,
        plan: Plan,
        run_id: str,
        executor: Executor,
        config: ScheduleConfig,
        events: Sequence[Event],
    ) -> None:
        self.plan = plan
        self.run_id = run_id
        self.attempts = self.calls = 0
        self.parameters: Mapping[str, str] = events[0].data.get("parameters", {})
        self._executor = executor
        self._events = events
        self._schedule = Schedule(plan, config)
        self._contexts: dict[tuple[str, int], StepContext] = {}
        self._recorded: dict[tuple[str, int], _RecordedCalls] = {}
        self._given: set[tuple[str, int]] = set()
        self._asked: set[str] = set()
        self._end: EndRun | None = None
        self._forked = _forked_at(events)

    async def step(self, event: Event) -> None:
        """Check one event against what the schedule and the executor say, then take it in."""
        now = datetime.fromisoformat(event.time).timestamp()
        self._take(self._schedule.tick(now))
        if event.kind == "step_started":
            self._started(event)
        elif event.kind == "step_finished" and event.index not in self._forked:
            await self._finished(event)
        elif event.kind == "run_ended":
            self._ended(event)
        elif event.kind == "run_resumed":
            self._given.clear()
        self._take(self._schedule.handle(event, now))
        self._schedule.take_facts()

    def _take(self, commands: Sequence[Any]) -> None:
        for command in commands:
            if isinstance(command, StartStep):
                self._given.add((command.step, command.attempt))
            elif isinstance(command, AskPerson):
                self._asked.add(command.gate)
            elif isinstance(command, EndRun):
                self._end = command

    def _started(self, event: Event) -> None:
        key = (str(event.step), int(event.data.get("attempt", 0)))
        if key not in self._given:
            raise ReplayDivergence(event.index, f"{key[0]} would not be started here")
        calls = _RecordedCalls(self._events, key, event.index)
        self._recorded[key] = calls
        self._contexts[key] = step_context(self, self._schedule.state, *key, calls)

    async def _finished(self, event: Event) -> None:
        key = (str(event.step), int(event.data.get("attempt", 0)))
        state = self._schedule.state.steps.get(key[0])
        current = state is not None and state.status == "running" and state.attempt == key[1]
        if not current or event.data.get("status") == "timed_out":
            return  # late, or ended by time: nothing that could be computed again
        step = self.plan.nodes[key[0]].step
        if step is None:
            return  # nothing is done in ``end``
        if key not in self._contexts:
            raise ReplayDivergence(event.index, f"{key[0]} is not a step that was started")
        self.attempts += 1
        edges = self.plan.outgoing(key[0])
        found: tuple[str, Any, Any]
        try:
            outcome = await self._executor.run(step, edges, self._contexts[key])
            check_total(edges, outcome.edges)
            found = ("succeeded", check_result(outcome.result), dict(outcome.edges))
        except ReplayDivergence:
            raise
        except AgentRTError:
            found = ("failed", None, {})
        self.calls += self._recorded[key].used
        data = event.data
        recorded = (data.get("status"), data.get("result"), data.get("edges") or {})
        _compare(event, found, recorded)

    def _ended(self, event: Event) -> None:
        status = event.data.get("status")
        if self._end is None:
            raise ReplayDivergence(event.index, "the run would not end here")
        if self._end.status != status:
            raise ReplayDivergence(
                event.index, f"the run would end {self._end.status}, not {status}"
            )


def _forked_at(events: Sequence[Event]) -> set[int]:
    """The events by which a fork gave a step another end: nobody computed them."""
    return {event.index + 1 for event in events if event.kind == "run_forked"}


def _compare(event: Event, found: tuple[str, Any, Any], recorded: tuple[Any, Any, Any]) -> None:
    for what, now, then in zip(("status", "result", "edges"), found, recorded, strict=True):
        if now != then:
            raise ReplayDivergence(
                event.index, f"the {what} of {event.step} is {_short(now)}, not {_short(then)}"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


class _RecordedCalls:
    """Hands out what one attempt's calls came to, in their order."""

    def __init__(self, events: Sequence[Event], key: tuple[str, int], start: int) -> None:
        own = [e for e in events[start:] if e.step == key[0] and e.data.get("attempt") == key[1]]
        self.used = 0
        self._calls = deque(event for event in own if event.kind in _CALLS)
        self._decided = deque(event for event in own if event.kind == "edge_decided")
        self._answers = {
            str(event.data.get("gate")): event for event in events if event.kind == "gate_answered"
        }
        self._key = key
        self._last = start

    async def call(self, kind: CallKind, request: Mapping[str, Any], live: Live) -> dict[str, Any]:
        """Return the recorded outcome of this very request, wherever it stands in the order."""
        asked = digest(request)
        event = self._matching(kind, asked)
        self._last = event.index
        self.used += 1
        if "failed" in event.data:
            raise_recorded(event.data["failed"])
        outcome: dict[str, Any] = event.data["outcome"]
        return outcome

    def _matching(self, kind: CallKind, asked: str) -> Event:
        # Calls of one attempt may overlap, so their order in the log need not be that of asking.
        for event in self._calls:
            if event.kind == kind and event.data.get("digest") == asked:
                self._calls.remove(event)
                return event
        what = kind.replace("_", " ")
        raise ReplayDivergence(
            self._expected(), f"{self._key[0]} asks for a {what} that was not recorded"
        )

    def _expected(self) -> int:
        """The first recorded event that has not been come to, else the last that has."""
        left = [found[0].index for found in (self._calls, self._decided) if found]
        return min(left, default=self._last)

    async def ask(self, question: Question) -> tuple[str, str]:
        """Return the recorded answer."""
        event = self._answers.get(question.gate)
        if event is None:
            raise ReplayDivergence(self._expected(), f"{question.gate} was never answered")
        return str(event.data["answer"]), str(event.data["by"])

    async def decided(self, decision: Decision) -> None:
        """Compare a decision with the recorded one."""
        if not self._decided:
            raise ReplayDivergence(self._last, f"{decision.edge} was not decided")
        event = self._decided.popleft()
        recorded = (event.data.get("edge"), event.data.get("state"), event.data.get("by"))
        if recorded != (decision.edge, decision.state, decision.by):
            raise ReplayDivergence(
                event.index, f"{decision.edge} is {decision.state} by {decision.by}"
            )
