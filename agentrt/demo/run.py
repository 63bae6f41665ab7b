"""Plays every recording at once on a runtime, and turns what happened into a run record."""

from __future__ import annotations

import random
import shlex
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import anyio

from agentrt.bench.recorder import KVSampler, Recorder
from agentrt.bench.records import RunRecord, ToolRecord
from agentrt.demo.agent import Agent, sandbox_spec
from agentrt.demo.interfaces import RuntimeLike
from agentrt.demo.progress import Observer, RowState, new_row
from agentrt.demo.recording import Recording
from agentrt.errors import AgentRTError, SandboxError
from agentrt.scheduling.plan import Event, PinEnded, TurnFinished

__all__ = ["Demo", "EventLog", "Skipped", "stagger"]

SAMPLE_SECONDS = 0.1
PROBE_TIMEOUT = 20.0


class EventLog:
    """Keeps the engine's events; its callback may run in any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Keep an event, in the order of arrival."""
        with self._lock:
            self._events.append(event)

    def events(self) -> list[Event]:
        """Return what was kept so far."""
        with self._lock:
            return list(self._events)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A recording that cannot be played here, and why."""

    name: str
    reason: str


def stagger(names: Iterable[str], seed: int, interval: float = 0.4) -> dict[str, float]:
    """Return seeded arrival times in seconds: the first at 0, at most ``interval`` between two."""
    draw = random.Random(seed)
    now, arrivals = 0.0, {}
    for name in names:
        arrivals[name] = now
        now += draw.uniform(0.0, interval)
    return arrivals


class Demo:
    """One run of the demo. ``play`` may be cancelled at any time; the records then say so.

    Args:
        recordings: what is played, all at once.
        log: sees the events of the runtime that ``play`` is given.
        seed: seeds the arrivals.
        observer: told of every change of a row, in the event loop's thread; set it before ``play``.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        log: EventLog,
        *,
        seed: int = 0,
        observer: Observer = lambda row, text: None,
    ) -> None:
        self.recordings = tuple(recordings)
        self.rows = {one.name: new_row(one) for one in self.recordings}
        self.skipped: list[Skipped] = []
        self.complete = False
        self._log = log
        self.observer = observer
        self._seed = seed
        self._start = 0.0
        self._kept = RunRecord("", seed, "live", 0, "demo")

    async def skip_what_cannot_run(self, runtime: RuntimeLike) -> None:
        """Try in a sandbox which of the needed programs are there; drop recordings without theirs.

        Raises:
            SandboxError: no sandbox can be made, or it does not run a shell.
        """
        needs = sorted({name for one in self.recordings for name in one.task.needs} | {"tar"})
        script = (
            f"for name in {shlex.join(needs)}; do command -v $name >/dev/null || echo $name; done"
        )
        async with runtime.program("demo-probe") as program:
            box = await program.sandbox(sandbox_spec())
            found = (await box.exec(script, timeout=PROBE_TIMEOUT)).check()
        missing = set(found.stdout.decode().split())
        if "tar" in missing:
            raise SandboxError("There is no tar in the sandbox.", remedy="Install tar.")
        for one in self.recordings:
            lacking = [name for name in one.task.needs if name in missing]
            if lacking:
                self.skipped.append(
                    Skipped(one.name, f"the sandbox has no {' and no '.join(lacking)}")
                )
                del self.rows[one.name]
        self.recordings = tuple(one for one in self.recordings if one.name in self.rows)

    async def play(self, runtime: RuntimeLike) -> None:
        """Play every recording and judge each; a program that fails does not stop the others."""
        self._start = runtime.clock()
        arrivals = stagger(self.rows, self._seed)
        try:
            async with anyio.create_task_group() as outer:
                outer.start_soon(self._sample, runtime)
                async with anyio.create_task_group() as group:
                    for one in self.recordings:
                        at = one.program.arrival + arrivals[one.name]
                        group.start_soon(self._one, runtime, one, at)
                outer.cancel_scope.cancel()
            self.complete = True
        finally:
            now = runtime.clock() - self._start
            for row in self.rows.values():
                if not row.done:
                    row.state, row.finished, row.detail = "cancelled", now, "interrupted"

    def record(self, policy: str, pool_tokens: int = 0) -> RunRecord:
        """Return everything that happened; call it once the runtime is closed."""
        record = replace(
            self._kept,
            policy=policy,
            pool_tokens=pool_tokens,
            turns=[],
            pins=[],
            programs=[],
            complete=self.complete,
        )
        recorder = Recorder(record, self._start)
        programs = {one.name: one.program for one in self.recordings}
        counts: dict[str, int] = dict.fromkeys(programs, 0)
        held: dict[str, int] = dict.fromkeys(programs, 0)
        for event in self._log.events():
            if isinstance(event, PinEnded) and event.program_id in programs:
                recorder.pin(event)
            elif isinstance(event, TurnFinished) and event.stats.program_id in programs:
                stats, name = event.stats, event.stats.program_id
                ideal = max(1, stats.prompt_tokens - held[name])
                recorder.turn(programs[name], counts[name], ideal, stats)
                counts[name] += 1
                held[name] = stats.prompt_tokens + stats.output_tokens
        for row in self.rows.values():
            recorder.program(
                programs[row.name],
                self._start + row.started,
                self._start + (row.finished or 0.0),
                row.outcome,
                row.detail,
            )
        return record

    async def _sample(self, runtime: RuntimeLike) -> None:
        sampler = KVSampler(self._kept.kv)
        while True:
            now = runtime.clock() - self._start
            if now >= sampler.due:
                sampler.add(now, runtime.statistics().scheduler)
            await anyio.sleep(SAMPLE_SECONDS)

    async def _one(self, runtime: RuntimeLike, recording: Recording, arrival: float) -> None:
        await anyio.sleep(arrival)
        row = self.rows[recording.name]
        row.started = runtime.clock() - self._start
        state: RowState
        try:
            async with runtime.program(recording.name, tenant=recording.program.tenant) as program:
                agent = Agent(
                    recording, program, row, self.observer, self._keep_tool, runtime.clock
                )
                verdict = await agent.work()
            state, detail = "resolved" if verdict.resolved else "unresolved", verdict.detail
        except AgentRTError as error:
            state, detail = "failed", str(error)
        row.state, row.detail = state, detail
        row.finished = runtime.clock() - self._start
        self.observer(row, f"{state}: {detail}")

    def _keep_tool(self, row: ToolRecord) -> None:
        self._kept.tools.append(
            replace(row, start=row.start - self._start, end=row.end - self._start)
        )
