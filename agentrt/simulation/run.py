"""Runs programs through the real scheduler and the real page cache under a virtual clock.

Only the device is missing: a step takes what the cost model says. Inside a program the loop is
closed: a turn arrives when its recorded gap after the previous turn has passed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from agentrt.bench.recorder import Progress, Recorder, RunProgress
from agentrt.bench.records import ProgramOutcome
from agentrt.bench.workload import Program, Turn
from agentrt.errors import CapacityError, InternalError
from agentrt.scheduling.plan import (
    Event,
    PinEnded,
    Sample,
    StepPlan,
    StepResult,
    TurnFinished,
    TurnRequest,
    TurnStats,
)
from agentrt.scheduling.scheduler import Scheduler
from agentrt.scheduling.tokens import VirtualTokens
from agentrt.simulation.clock import VirtualClock
from agentrt.simulation.cost import CostModel
from agentrt.simulation.future import Future
from agentrt.simulation.link import Link

__all__ = ["Simulation"]

LONGEST_REPEAT = 1 << 20
"""Most repetitions asked for at once; the next event cuts them shorter."""

PROGRESS_STEPS = 2000


@dataclass(slots=True)
class _Run:
    """One program under way: the turn it is at, and what each of its contexts holds."""

    program: Program
    arrival: float
    index: int = 0
    ideal: int = 0
    held: dict[str, VirtualTokens] = field(default_factory=dict)

    @property
    def turn(self) -> Turn:
        return self.program.turns[self.index]

    @property
    def is_last(self) -> bool:
        return self.index == len(self.program.turns) - 1

    @property
    def turn_id(self) -> str:
        return f"{self.program.program}/{self.index}"

    def prompt(self) -> VirtualTokens:
        """Return the current turn's prompt and remember it as its context's state."""
        turn, tag = self.turn, (self.program.program, self.index)
        before = self.held.get(turn.context)
        if turn.blocks:
            source = VirtualTokens(_segments(turn), turn.prompt_tokens, tag)
        elif before is None:
            source = VirtualTokens.first(turn.prompt_tokens, tag)
        else:
            source = before.follow(turn.reused_tokens, turn.prompt_tokens, tag)
        self.held[turn.context] = source
        return source


def _segments(turn: Turn) -> list[tuple[int, Hashable]]:
    """Name a prompt's content by its blocks; the last one may be cut off by the prompt's end."""
    size = turn.block_tokens
    used = turn.blocks[: -(-turn.prompt_tokens // size)]
    return [
        (min((at + 1) * size, turn.prompt_tokens), ("block", name)) for at, name in enumerate(used)
    ]


class _IdealCache:
    """What a cache that never forgets would still have to prefill."""

    def __init__(self) -> None:
        self._blocks: set[int] = set()

    def prefill(self, turn: Turn) -> int:
        """Return the tokens of ``turn`` that it does not hold; at least the last one."""
        if not turn.blocks:
            return max(1, turn.prompt_tokens - turn.reused_tokens)
        known = sum(1 for _ in itertools.takewhile(self._blocks.__contains__, turn.blocks))
        self._blocks.update(turn.blocks)
        return max(1, turn.prompt_tokens - known * turn.block_tokens)


class _Foretelling:
    """Keeps a :class:`Future` true while programs are under way."""

    def __init__(self, future: Future, cost: CostModel) -> None:
        self._future = future
        self._cost = cost

    def _alone(self, turn: Turn) -> float:
        new = max(1, turn.prompt_tokens - turn.reused_tokens)
        return self._cost.turn_seconds(new, turn.prompt_tokens, turn.output_tokens)

    def arrives(self, run: _Run, time: float) -> None:
        """The current turn was handed in at ``time``."""
        self._future.set_return(run.program.program, run.turn.context, time)
        self._note_remaining(run)

    def leaves(self, run: _Run, back: float) -> None:
        """The turn before the current one ended; the current one arrives at ``back``.

        Other contexts are back no sooner than if all turns until then ran alone.
        """
        time, seen = back, set[str]()
        for turn in run.program.turns[run.index :]:
            if turn.context not in seen:
                seen.add(turn.context)
                self._future.set_return(run.program.program, turn.context, time)
            time += self._alone(turn) + (turn.gap or 0.0)
        for context in run.held.keys() - seen:
            self._future.set_return(run.program.program, context, math.inf)
        self._note_remaining(run)

    def _note_remaining(self, run: _Run) -> None:
        left = run.program.turns[run.index :]
        seconds = sum(self._alone(turn) + (turn.gap or 0.0) for turn in left)
        self._future.set_remaining(run.program.program, seconds)

    def ends(self, run: _Run) -> None:
        """The program has ended."""
        self._future.forget(run.program.program)


class Simulation:
    """One run. ``scheduler`` must be fresh; ``recorder`` receives everything that happens.

    Args:
        arrivals: ``(seconds, program)`` in order of time.
        stop: asked at every step; once true the run ends and is left incomplete.
        progress: called now and then.
        jump: plan stretches of pure decoding as one; switched off only to check that it is exact.
        link: to the scheduler's host tier, if it has one.
        future: is told what happens next, for a policy that is an oracle.
    """

    def __init__(
        self,
        arrivals: Sequence[tuple[float, Program]],
        scheduler: Scheduler,
        cost: CostModel,
        recorder: Recorder,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        jump: bool = True,
        link: Link | None = None,
        future: Future | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self._scheduler = scheduler
        self._cost = cost
        self._recorder = recorder
        self._stop = stop
        self._progress = progress
        self._horizon = LONGEST_REPEAT if jump else 1
        self._order = itertools.count()
        self._due: list[tuple[float, int, _Run]] = []
        self._active: dict[str, _Run] = {}
        self._ideal = _IdealCache()
        self._link = link
        self._foretell = None if future is None else _Foretelling(future, cost)
        self._steps = 0
        self._turns_done = 0
        self._programs = len(arrivals)
        self._turns = sum(len(program.turns) for _, program in arrivals)
        for time, program in arrivals:
            self._later(time, _Run(program, time))

    def run(self) -> bool:
        """Run to the end; False if ``stop`` ended it sooner."""
        while self._due or self._active:
            if self._stop():
                self._abandon()
                return False
            self._release_due()
            if not self._step():
                self._skip_idle_time()
            self._report()
        self._sample()
        return True

    # --- arrivals and returns

    def _later(self, time: float, run: _Run) -> None:
        heapq.heappush(self._due, (time, next(self._order), run))

    def _next_due(self) -> float:
        return self._due[0][0] if self._due else math.inf

    def _release_due(self) -> None:
        while self._due and self._due[0][0] <= self.clock.now:
            time, _, run = heapq.heappop(self._due)
            self._submit(run, time)

    def _submit(self, run: _Run, time: float) -> None:
        """Hand a turn in as of ``time``, which may lie within the step that has just ended."""
        turn = run.turn
        run.ideal = self._ideal.prefill(turn)
        if self._foretell is not None:
            self._foretell.arrives(run, time)
        request = TurnRequest(
            turn_id=run.turn_id,
            program_id=run.program.program,
            tokens=run.prompt(),
            max_output=turn.output_tokens,
            context=turn.context,
            tenant=run.program.tenant,
            next_tool=turn.next_tool,
            last=run.is_last,
        )
        try:
            self._scheduler.submit(request, time)
        except CapacityError as error:
            self._end(run, failed=str(error))
        else:
            self._active[request.turn_id] = run

    # --- steps

    def _step(self) -> bool:
        """Run one planned step; False if there is nothing to run."""
        now = self.clock.now
        if self._link is not None:
            self._scheduler.transferred(self._link.take_done(now), now)
        plan = self._scheduler.plan(now, self._horizon)
        if self._link is not None:
            self._link.begin(plan.transfers, now)
        if not plan.slices:
            self._handle(self._scheduler.take_events())
            return False
        cost, repeat = self._cost.step(plan), plan.repeat
        if repeat > 1:
            repeat = cost.repetitions(self._next_decision(now) - now, repeat)
        end = self.clock.advance(cost.total(repeat))
        events = self._scheduler.commit(plan, _result(plan, repeat), end)
        self._handle(self._scheduler.take_events())
        self._handle(events)
        if end >= self._recorder.sampler.due:
            self._sample()
        return True

    def _next_decision(self, now: float) -> float:
        """Return when something may happen that a repeated step must not run past."""
        deadline = self._scheduler.next_deadline(now)
        return min(self._next_event(), math.inf if deadline is None else deadline)

    def _next_event(self) -> float:
        """Return when a turn arrives or a copy is done, whichever is first."""
        copied = math.inf if self._link is None else self._link.next_done()
        return min(self._next_due(), copied)

    def _skip_idle_time(self) -> None:
        event = self._next_event()
        if event < math.inf:
            self.clock.advance_to(max(self.clock.now, event))
        elif self._active:
            raise InternalError(
                f"{len(self._active)} turns wait, yet the scheduler plans nothing at "
                f"{self.clock.now:.3f} s."
            )

    def _sample(self) -> None:
        self._recorder.sampler.add(self.clock.now, self._scheduler.statistics())

    # --- what happened

    def _handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TurnFinished):
                self._finished(event.stats)
            elif isinstance(event, PinEnded):
                self._recorder.pin(event)

    def _finished(self, stats: TurnStats) -> None:
        run = self._active.pop(stats.turn_id, None)
        if run is None:
            return  # cancelled together with its program, which is already accounted for
        self._turns_done += 1
        self._recorder.turn(run.program, run.index, run.ideal, stats)
        if stats.reason not in ("stop", "length"):
            self._end(run, failed=f"Turn {run.index} ended as {stats.reason}.")
        elif run.is_last:
            self._end(run)
        else:
            back = stats.finished + (run.turn.gap or 0.0)
            self._recorder.gap(run.program, run.index, stats.finished, back)
            run.index += 1
            if self._foretell is not None:
                self._foretell.leaves(run, back)
            self._later(back, run)

    def _end(self, run: _Run, failed: str = "") -> None:
        now = self.clock.now
        if self._foretell is not None:
            self._foretell.ends(run)
        self._scheduler.end_program(run.program.program, now)
        outcome: ProgramOutcome = "failed" if failed else "finished"
        self._recorder.program(run.program, run.arrival, now, outcome, failed)
        self._handle(self._scheduler.take_events())

    def _abandon(self) -> None:
        """Account for programs that had arrived when the run was stopped."""
        waiting = {run.program.program: run for _, _, run in self._due}
        under_way = waiting | {run.program.program: run for run in self._active.values()}
        for run in sorted(under_way.values(), key=lambda run: run.arrival):
            if run.arrival <= self.clock.now:
                self._recorder.program(
                    run.program, run.arrival, self.clock.now, "cancelled", "The run was stopped."
                )

    def _report(self) -> None:
        self._steps += 1
        if self._progress is None or self._steps % PROGRESS_STEPS:
            return
        record, state = self._recorder.record, self._scheduler.statistics()
        self._progress(
            RunProgress(
                policy=record.policy,
                seed=record.seed,
                now=self.clock.now,
                programs_done=len(record.programs),
                programs=self._programs,
                turns_done=self._turns_done,
                turns=self._turns,
                running=state.running,
                waiting=state.waiting,
            )
        )


def _result(plan: StepPlan, repeat: int) -> StepResult:
    """Stand for the device: every sampled slice gets one token a repetition, whatever it is."""
    sample = Sample(tokens=range(repeat))
    return StepResult({piece.turn_id: sample for piece in plan.slices if piece.sample})
