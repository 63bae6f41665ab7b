"""Turns a scheduler's reports into a run's records, for the simulator and the live replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from agentrt.bench.records import (
    KVSample,
    PinRecord,
    ProgramOutcome,
    ProgramRecord,
    RunRecord,
    ToolRecord,
    TurnRecord,
)
from agentrt.bench.workload import Program
from agentrt.scheduling.plan import PinEnded, SchedulerStatistics, TurnStats

__all__ = ["KVSampler", "Progress", "Recorder", "RunProgress"]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands: shown while it runs, never kept. ``now`` is seconds since its start."""

    policy: str
    seed: int
    now: float
    programs_done: int
    programs: int
    turns_done: int
    turns: int
    running: int = 0
    waiting: int = 0


Progress: TypeAlias = Callable[[RunProgress], None]


class KVSampler:
    """Samples of the page pool on an even grid of times, thinned so that at most ``limit`` stay.

    The grid starts at ``interval`` seconds and doubles whenever the list is full, so that a run of
    any length keeps between half of ``limit`` and all of it.
    """

    def __init__(self, samples: list[KVSample], limit: int = 1000, interval: float = 0.25) -> None:
        self._samples = samples
        self._limit = limit
        self._interval = interval
        self.due = 0.0

    def add(self, now: float, state: SchedulerStatistics) -> None:
        """Keep a sample; the caller asks first whether ``now >= due``."""
        page = state.page_size
        self._samples.append(
            KVSample(
                time=now,
                leased=state.pages_leased * page,
                pinned=state.pages_pinned * page,
                cached=state.pages_cached * page,
                free=state.pages_free * page,
                running=state.running,
                waiting=state.waiting,
            )
        )
        if len(self._samples) >= self._limit:
            del self._samples[1::2]
            self._interval *= 2
        self.due = (now // self._interval + 1) * self._interval


class Recorder:
    """Collects one run. Times given to it count from ``start`` on the driver's clock."""

    def __init__(self, record: RunRecord, start: float = 0.0) -> None:
        self.record = record
        self.start = start
        self.sampler = KVSampler(record.kv)

    def turn(self, program: Program, index: int, ideal: int, stats: TurnStats) -> TurnRecord:
        """Keep a turn that ended; ``ideal`` is what an infinite cache would have prefilled."""
        turn = program.turns[index]
        earlier = (one.context for one in program.turns[:index])
        row = TurnRecord(
            program=program.program,
            tenant=program.tenant,
            context=turn.context,
            index=index,
            first=turn.context not in earlier,
            submitted=stats.submitted - self.start,
            admitted=self._since(stats.admitted),
            first_token=self._since(stats.first_token),
            finished=stats.finished - self.start,
            prompt_tokens=stats.prompt_tokens,
            ideal_tokens=ideal,
            cached_tokens=stats.cached_tokens,
            prefilled_tokens=stats.prefilled_tokens,
            output_tokens=stats.output_tokens,
            preemptions=stats.preemptions,
            queue_seconds=stats.queue_seconds,
            prefill_seconds=stats.prefill_seconds,
            decode_seconds=stats.decode_seconds,
            reason=stats.reason,
            text=_excerpt(turn.output or ""),
        )
        self.record.turns.append(row)
        return row

    def gap(self, program: Program, index: int, start: float, end: float) -> None:
        """Keep the time between two turns as one tool record, named after the turn's tools."""
        turn = program.turns[index]
        names = dict.fromkeys(tool.key for tool in turn.tools)
        self.record.tools.append(
            ToolRecord(
                program=program.program,
                context=turn.context,
                name=", ".join(names) or "gap",
                start=start - self.start,
                end=end - self.start,
                command=_excerpt(next((tool.command or "" for tool in turn.tools), "")),
            )
        )

    def tool(self, row: ToolRecord) -> None:
        """Keep a tool call that was run for real."""
        self.record.tools.append(row)

    def pin(self, event: PinEnded) -> None:
        """Keep a pin that ended."""
        self.record.pins.append(
            PinRecord(
                program=event.program_id,
                context=event.context,
                start=event.start - self.start,
                end=event.end - self.start,
                ttl=event.ttl,
                tokens=event.tokens,
                outcome=event.outcome,
            )
        )

    def program(
        self,
        program: Program,
        arrival: float,
        finished: float,
        outcome: ProgramOutcome,
        detail: str = "",
    ) -> None:
        """Keep a program that ended."""
        self.record.programs.append(
            ProgramRecord(
                program=program.program,
                tenant=program.tenant,
                arrival=arrival - self.start,
                finished=finished - self.start,
                outcome=outcome,
                detail=detail,
                deadline=program.deadline,
            )
        )

    def _since(self, time: float | None) -> float | None:
        return None if time is None else time - self.start


def _excerpt(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
