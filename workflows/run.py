"""Runs of a plan: run, resume, replay, fork. Each run is the fold of its events in the log.

A run ends in a named state whatever its steps, models and tools do. Cancelling the task that drives
it (Ctrl-C) leaves a run that ``resume`` carries on, as does the death of the process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from agentrt.errors import AgentRTError, GuideError, InvalidRequest
from agentrt.workflows.decide import check_total
from agentrt.workflows.events import Event
from agentrt.workflows.executor_context import Executor, digest
from agentrt.workflows.log import LogError, LogFull, RunLog, fold
from agentrt.workflows.person import Person
from agentrt.workflows.plan import Plan
from agentrt.workflows.run_drive import Drive, DriveConfig
from agentrt.workflows.run_outcome import RunOutcome, outcome_of
from agentrt.workflows.run_replay import Replayed, replay_events
from agentrt.workflows.schedule import Schedule, ScheduleConfig

__all__ = ["GuideRunner", "Run", "RunOptions", "RunOutcome"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How runs are driven; ``schedule`` also holds the budgets and the number of workers."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    drive: DriveConfig = field(default_factory=DriveConfig)


class Run:
    """A run under way: iterate over its events, or read why its steps wait."""

    def __init__(self, run_id: str, events: MemoryObjectReceiveStream[Event]) -> None:
        self.run_id = run_id
        self.outcome: RunOutcome | None = None
        """Set once the run has ended or was left to be resumed."""
        self._events = events
        self._schedule: Schedule | None = None

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events.__aiter__()

    def waits(self) -> dict[str, str]:
        """Why each waiting step does not get on: worker, gate or retry; by step."""
        return self._schedule.waits() if self._schedule is not None else {}


class GuideRunner:
    """Runs one plan with one executor.

    Args:
        plan: what is run.
        log: where events go.
        executor: runs attempts of steps.
        person: answers gates and questions in this process; None leaves them to others.
        options: workers, budgets, intervals.
        clock: monotonic seconds.
        wall: seconds since the epoch.
        on_event: called after each event has been appended, before anything follows from it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        log: RunLog,
        executor: Executor,
        person: Person | None = None,
        options: RunOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.plan = plan
        self.log = log
        self._executor = executor
        self._person = person
        self._options = options or RunOptions()
        self._clock = clock
        self._wall = wall
        self._on_event = on_event

    @property
    def fingerprint(self) -> str:
        """Digest of the guide, its queries and nested guides, and of what runs it (the model)."""
        return digest([self.plan.fingerprint, self._executor.name])

    # -- run -------------------------------------------------------------------------------------

    async def run(
        self, parameters: Mapping[str, str] | None = None, *, run_id: str | None = None
    ) -> RunOutcome:
        """Start a run and carry it to its end.

        Raises:
            GuideError: a parameter is missing or unknown.
            InvalidRequest: there is a run of this id.
            LogFull, LogError: the log takes no more; the run can be resumed.
        """
        drive, first = self._new(parameters or {}, run_id)
        return await self._go(drive, "run_started", first)

    async def resume(self, run_id: str) -> RunOutcome:
        """Carry a run on from its log. A run that has ended is not touched.

        Finished steps are not run again. A step that was under way is, unless it says that this
        does harm (``idempotent: no``): then a person is asked, and without an answer it is not.

        Raises:
            InvalidRequest: there is no such run, or nothing of it was recorded.
            GuideError: the guide, its queries or the model are not those the run began with.
            RunBusy: another process drives it.
        """
        events = self._recorded(run_id)
        if events[-1].kind == "run_ended":
            return self.outcome(run_id)
        self._check_fingerprint(run_id, events)
        drive = self._restored(run_id, events)
        data = {"fingerprint": self.fingerprint, "from_run": run_id, "from_step": None}
        return await self._go(drive, "run_resumed", data)

    async def fork(
        self,
        run_id: str,
        step: str,
        result: Mapping[str, Any],
        *,
        edges: Mapping[str, str] | None = None,
        new_run_id: str | None = None,
    ) -> RunOutcome:
        """Make a run like this one up to the end of a step, give the step another result, go on.

        Args:
            edges: the step's decisions in the fork; those it had made when None.

        Raises:
            InvalidRequest: no such run, the step has not finished in it, or the id is taken.
            GuideError: the guide has changed before the end of the step.
        """
        new = new_run_id or new_id()
        if edges is not None and step in self.plan.nodes:
            check_total(self.plan.outgoing(step), edges)
        _check_same_edges(self.plan, self._recorded(run_id), step)
        self.log.fork(run_id, step, dict(result), new_run_id=new, edges=edges)
        drive = self._restored(new, self._recorded(new))
        data = {"fingerprint": self.fingerprint, "from_run": run_id, "from_step": step}
        return await self._go(drive, "run_resumed", data)

    async def replay(self, run_id: str) -> Replayed:
        """Go through a run again with its recorded calls and no live ones, and compare.

        Raises:
            ReplayDivergence: this guide and code come to something else than was recorded; names
                the event.
        """
        events = self._recorded(run_id)
        return await replay_events(
            self.plan, run_id, events, self._executor, self._config_of(events)
        )

    def outcome(self, run_id: str) -> RunOutcome:
        """Return what a run has come to so far, read from the log."""
        events = self._recorded(run_id)
        state = fold(self.plan, events, compat=bool(events[0].data.get("compat")))
        return outcome_of(run_id, self.plan, state, events)

    @asynccontextmanager
    async def start(
        self, parameters: Mapping[str, str] | None = None, *, run_id: str | None = None
    ) -> AsyncIterator[Run]:
        """Start a run and give its events as they come; leaving early stops it, resumable.

        Raises:
            as ``run``; errors while it runs come out when the block is left.
        """
        drive, first = self._new(parameters or {}, run_id)
        send, receive = anyio.create_memory_object_stream[Event](float("inf"))
        run = Run(drive.run_id, receive)
        run._schedule = drive.schedule
        drive.watch(send.send_nowait)
        async with anyio.create_task_group() as group, receive:
            group.start_soon(self._feed, drive, first, run, send)
            yield run
            group.cancel_scope.cancel()

    async def _feed(
        self,
        drive: Drive,
        first: Mapping[str, Any],
        run: Run,
        send: MemoryObjectSendStream[Event],
    ) -> None:
        async with send:
            run.outcome = await self._go(drive, "run_started", first)

    # -- making a drive --------------------------------------------------------------------------

    def _new(
        self, parameters: Mapping[str, str], run_id: str | None
    ) -> tuple[Drive, dict[str, Any]]:
        given = check_parameters(self.plan, parameters)
        new = run_id or new_id()
        config = self._options.schedule
        self.log.create(new, self.plan.guide.name, self.fingerprint)
        first = {
            "guide": self.plan.guide.name,
            "fingerprint": self.fingerprint,
            "parameters": given,
            "workers": config.workers,
            "budget": {"tokens": config.budget_tokens, "wall_seconds": config.wall_seconds},
            "seed": config.seed,
            "compat": config.compat,
            "executor": self._executor.name,
        }
        return self._drive(new, given, Schedule(self.plan, config), 0), first

    def _restored(self, run_id: str, events: list[Event]) -> Drive:
        present = _iso(self._wall())
        schedule = Schedule.restore(
            self.plan, self._config_of(events), events, now=self._clock(), time=present
        )
        given = events[0].data.get("parameters", {})
        return self._drive(run_id, given, schedule, events[-1].index + 1)

    def _config_of(self, events: list[Event]) -> ScheduleConfig:
        """Return the options, with what the run was started with where that decides its course."""
        seed = events[0].data.get("seed", self._options.schedule.seed)
        compat = bool(events[0].data.get("compat"))
        return replace(self._options.schedule, seed=seed, compat=compat)

    def _drive(
        self, run_id: str, parameters: Mapping[str, str], schedule: Schedule, index: int
    ) -> Drive:
        return Drive(
            self.plan,
            run_id,
            parameters,
            schedule=schedule,
            log=self.log,
            executor=self._executor,
            clock=self._clock,
            next_index=index,
            wall=self._wall,
            person=self._person,
            config=self._options.drive,
            on_event=self._on_event,
        )

    async def _go(self, drive: Drive, kind: str, data: Mapping[str, Any]) -> RunOutcome:
        """Drive a run while owning it. What breaks the drive itself ends the run as failed."""
        with self.log.own(drive.run_id):
            try:
                await drive.go(kind, data)
            except BaseExceptionGroup as group:
                error = _first(group)
                if error is None or isinstance(error, LogError | LogFull):
                    raise error or group from group
                reason = f"the runner failed: {error.message}"
                self.log.append(
                    drive.run_id, "run_ended", None, {"status": "failed", "reason": reason[:2000]}
                )
        return self.outcome(drive.run_id)

    # -- reading back ----------------------------------------------------------------------------

    def _recorded(self, run_id: str) -> list[Event]:
        events = self.log.events(run_id)
        if not events or events[0].kind != "run_started":
            raise InvalidRequest(
                f"The run {run_id!r} has no recorded beginning.", remedy="Start a new run."
            )
        return events

    def _check_fingerprint(self, run_id: str, events: list[Event]) -> None:
        known = [e.data["fingerprint"] for e in events if "fingerprint" in e.data]
        if known[-1] == self.fingerprint:
            return
        executor = events[0].data.get("executor")
        what = "its guide or queries" if executor == self._executor.name else "its model or queries"
        raise GuideError(
            f"The run {run_id!r} began with other contents: {what} changed since.",
            remedy="Undo the change, or carry on with it in a new run: "
            f"agentrt guide fork {run_id} --from STEP.",
        )


def check_parameters(plan: Plan, given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a guide's parameters, defaults filled in.

    Raises:
        GuideError: one is missing or unknown.
    """
    known = {parameter.name: parameter for parameter in plan.guide.parameters}
    unknown = sorted(set(given) - set(known))
    values = {p.name: p.default for p in known.values() if p.default is not None}
    values |= {name: str(value) for name, value in given.items() if name in known}
    missing = [p.name for p in known.values() if p.required and p.name not in values]
    where = plan.guide.path or plan.guide.name
    if missing or unknown:
        what = [*(f"{n} is missing" for n in missing), *(f"{n} is unknown" for n in unknown)]
        raise GuideError(
            f"{where}: the parameters do not fit: {', '.join(what)}.",
            remedy=f"The guide takes: {', '.join(known) or 'none'}.",
        )
    return values


def new_id() -> str:
    """Return a fresh run id."""
    return f"run-{uuid.uuid4().hex[:12]}"


def _iso(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _first(group: BaseExceptionGroup[BaseException]) -> AgentRTError | None:
    """Return our own error in a group, a log's before any other; None if there is none."""
    found = [each for each in _leaves(group) if isinstance(each, AgentRTError)]
    logs = [each for each in found if isinstance(each, LogError | LogFull)]
    return next(iter([*logs, *found]), None)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _check_same_edges(plan: Plan, events: list[Event], step: str) -> None:
    """Check that a fork's kept part still fits the plan.

    Raises:
        GuideError: a step that has finished before has other out-edges now.
    """
    for event in events:
        if event.kind != "step_finished" or event.step is None:
            continue
        if event.step == step:
            return
        if event.data.get("status") != "succeeded":
            continue
        known = event.step in plan.nodes
        if not known or set(event.data["edges"]) != {e.name for e in plan.outgoing(event.step)}:
            raise GuideError(
                f"{event.step} has other connections than when the run was recorded.",
                remedy=f"Fork from {event.step} or an earlier step, naming its edges.",
            )
