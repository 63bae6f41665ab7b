"""Runs programs through the real scheduler and the real page cache under a virtual clock.

Only the device is missing: a step takes what the cost model says. Inside a program the loop is
closed: a turn arrives when its recorded gap after the previous turn has passed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence

from agentrt.bench.recorder import Progress, Recorder, RunProgress
from agentrt.bench.records import ProgramOutcome
from agentrt.bench.workload import Program
from agentrt.errors import CapacityError, InternalError
from agentrt.scheduling.plan import Event, PinEnded, TurnFinished, TurnStats
from agentrt.scheduling.scheduler import Scheduler
from agentrt.simulation.clock import VirtualClock
from agentrt.simulation.cost import CostModel
from agentrt.simulation.future import Future
from agentrt.simulation.link import Link
from agentrt.simulation.programs import Foretelling, IdealCache, ProgramRun, sampled

__all__ = ["Simulation"]

LONGEST_REPEAT = 1 << 20
"""Most repetitions asked for at once; the next event cuts them shorter."""

PROGRESS_STEPS = 2000


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
        self._due: list[tuple[float, int, ProgramRun]] = []
        self._active: dict[str, ProgramRun] = {}
        self._failed: set[str] = set()
        self._ideal = IdealCache()
        self._link = link
        self._foretell = None if future is None else Foretelling(future, cost)
        self._steps = 0
        self._turns_done = 0
        self._programs = len(arrivals)
        self._turns = sum(len(program.turns) for _, program in arrivals)
        for time, program in arrivals:
            for run in ProgramRun(program, time).first_turns():
                self._later(time, run)

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

    def _later(self, time: float, run: ProgramRun) -> None:
        heapq.heappush(self._due, (time, next(self._order), run))

    def _next_due(self) -> float:
        return self._due[0][0] if self._due else math.inf

    def _release_due(self) -> None:
        while self._due and self._due[0][0] <= self.clock.now:
            time, _, run = heapq.heappop(self._due)
            if run.program.program not in self._failed:
                self._submit(run, time)

    def _submit(self, run: ProgramRun, time: float) -> None:
        """Hand a turn in as of ``time``, which may lie within the step that has just ended."""
        run.ideal = self._ideal.prefill(run.turn)
        if self._foretell is not None:
            self._foretell.arrives(run, time)
        request = run.request()
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
        events = self._scheduler.commit(plan, sampled(plan, repeat), end)
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
        """Return when a turn arrives, a copy is done or one is wanted, whichever is first."""
        if self._link is None:
            return self._next_due()
        wanted = self._scheduler.next_prefetch()
        return min(self._next_due(), self._link.next_done(), math.inf if wanted is None else wanted)

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
            self._goes_on(run, stats.finished)

    def _goes_on(self, run: ProgramRun, finished: float) -> None:
        """After the gap of a turn that ended come those that waited for it."""
        back = finished + (run.turn.gap or 0.0)
        self._recorder.gap(run.program, run.index, finished, back)
        ready = run.next_turns(back)
        if self._foretell is not None and run.program.branches:
            self._foretell.branches(run, finished)
        elif self._foretell is not None:
            self._foretell.leaves(run, back)
        for time, following in ready:
            self._later(time, following)

    def _end(self, run: ProgramRun, failed: str = "") -> None:
        now = self.clock.now
        if self._foretell is not None:
            self._foretell.ends(run)
        if failed:
            self._forget_others(run)
        self._scheduler.end_program(run.program.program, now)
        outcome: ProgramOutcome = "failed" if failed else "finished"
        self._recorder.program(run.program, run.arrival, now, outcome, failed)
        self._handle(self._scheduler.take_events())

    def _forget_others(self, run: ProgramRun) -> None:
        """Of a program that has failed no other turn counts or comes any more."""
        name = run.program.program
        self._failed.add(name)
        for turn_id in [key for key, one in self._active.items() if one.program.program == name]:
            del self._active[turn_id]

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
