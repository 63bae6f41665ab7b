"""Runs programs through many schedulers under one virtual clock; the real router places turns.

    heap of events, by time:   a worker's step ends   before   turns arrive   before   the rest
    after all of one moment:   every worker that has no step plans its next one

With one worker this gives, turn by turn, exactly what :class:`agentrt.simulation.run.Simulation`
gives. A worker's long decode step is planned without knowing what will arrive; an arrival cuts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agentrt.bench.recorder import Progress, RunProgress
from agentrt.bench.records import ProgramOutcome
from agentrt.bench.workload import Program
from agentrt.errors import InternalError
from agentrt.scheduling.plan import (
    Event,
    PinEnded,
    TurnAdmitted,
    TurnFinished,
    TurnStats,
)
from agentrt.simulation.carrier import Carrier
from agentrt.simulation.clock import VirtualClock
from agentrt.simulation.eventqueue import EventQueue, Kind
from agentrt.simulation.flights import Away, Flight, Journey
from agentrt.simulation.groups import Group, total
from agentrt.simulation.network import Network
from agentrt.simulation.programs import Foretelling, IdealCache, ProgramRun
from agentrt.simulation.tally import Ledger
from agentrt.simulation.toolhosts import ToolHosts
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["ClusterSimulation"]

PROGRESS_EVENTS = 20_000


class ClusterSimulation:
    """One run. Schedulers and routers must be fresh; ``ledger`` receives everything that happens.

    Args:
        arrivals: ``(seconds, program)`` in order of time.
        serving: the workers that serve turns, or only their prefills if there is ``decoding``.
        ledger: a :class:`agentrt.bench.recorder.Recorder`, or a lighter :class:`Tally`.
        network: between workers.
        decoding: the workers that decode what ``serving`` has prefilled.
        tools: where tool calls run; None: without limit.
        tool_memory: bytes that the tool calls after a turn need, given program and turn index.
        scale: ``(seconds, workers more or less)`` of ``serving``.
        foretell: is told what comes next, for policies that are oracles.
        stop: asked all the time; once true the run ends and is left incomplete.
        progress: called now and then.
    """

    def __init__(
        self,
        arrivals: Sequence[tuple[float, Program]],
        serving: Group,
        ledger: Ledger,
        network: Network,
        *,
        decoding: Group | None = None,
        tools: ToolHosts | None = None,
        tool_memory: Callable[[Program, int], int] = lambda program, index: 0,
        scale: Sequence[tuple[float, int]] = (),
        foretell: Foretelling | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.events = 0
        self._serving = serving
        self._decoding = decoding
        self._groups = [serving] if decoding is None else [serving, decoding]
        self._ledger = ledger
        self._away = Away(
            tools,
            tool_memory,
            ledger,
            lambda time, run: self._queue.push(time, Kind.ARRIVAL, run),
            lambda time, call: self._queue.push(time, Kind.CALL, call),
            foretell,
        )
        self._foretell = foretell
        self._failed: set[str] = set()
        self._stop = stop
        self._progress = progress
        self._queue = EventQueue()
        self._carrier = Carrier(network, self._queue, self._handle)
        self._ideal = IdealCache()
        self._done = [0, 0]
        self._totals = (len(arrivals), sum(len(program.turns) for _, program in arrivals))
        for time, program in arrivals:
            for run in ProgramRun(program, time).first_turns():
                self._queue.push(time, Kind.ARRIVAL, run)
        for time, change in scale:
            self._queue.push(time, Kind.SCALE, change)

    def run(self) -> bool:
        """Run to the end; False if ``stop`` ended it sooner."""
        while self._queue:
            if self._stop():
                self._abandon()
                return False
            now = self.clock.advance_to(max(self._queue.next_time(), self.clock.now))
            while self._queue.next_time() <= now:
                self._dispatch(*self._queue.pop(), now)
            self._plan_ready(now)
            self._report(now)
        if self._carrier.flights:
            raise InternalError(
                f"{len(self._carrier.flights)} turns wait, yet no worker plans anything."
            )
        self._sample(self.clock.now)
        return True

    def _dispatch(self, kind: Kind, what: Any, now: float) -> None:
        if kind == Kind.STEP:
            worker, version, group = what
            self._step_ended(worker, version, group, now)
        elif kind == Kind.ARRIVAL:
            self._arrives(what, now)
        elif kind == Kind.CALL:
            self._away.call_ended(what, now)
        elif kind == Kind.DELIVERY:
            flight, pages = what
            self._carrier.delivered(flight, pages, now)
        elif kind == Kind.COPY:
            worker, group = what
            self._copied(worker, group)
        elif kind == Kind.SCALE:
            self._carrier.scale(self._serving, what, now)
        else:
            self._carrier.rebalance(self._groups, now)

    # -- workers' steps ------------------------------------------------------------------------

    def _plan_ready(self, now: float) -> None:
        while self._carrier.ready:
            worker, group = self._carrier.ready.popitem()
            for refused in worker.take_in():
                flight = self._carrier.flights.pop(refused.turn_id, None)
                if flight is not None:
                    self._end(
                        self._carrier.journeys[flight.request.program_id], now, refused.reason
                    )
            end = worker.plan(now)
            self._handle(group, worker.scheduler.take_events(), now)
            if end is not None:
                self._queue.push(end, Kind.STEP, (worker, worker.version, group))
            elif worker.next_copy() < math.inf:
                self._queue.push(worker.next_copy(), Kind.COPY, (worker, group))

    def _step_ended(self, worker: SimulatedWorker, version: int, group: Group, now: float) -> None:
        if version != worker.version:
            return  # it was cut short, and another event stands for its end
        self._handle(group, worker.commit(now), now)
        self._carrier.ready[worker] = group
        if now >= self._ledger.sampler.due:
            self._sample(now)

    def _copied(self, worker: SimulatedWorker, group: Group) -> None:
        if not worker.busy:
            self._carrier.ready[worker] = group

    def _handle(self, group: Group, events: Sequence[Event], now: float) -> None:
        for event in events:
            if isinstance(event, TurnFinished):
                self._finished(event.stats, now)
            elif isinstance(event, TurnAdmitted):
                group.router.started(event.turn_id, now)
            elif isinstance(event, PinEnded):
                self._ledger.pin(event)

    # -- turns ---------------------------------------------------------------------------------

    def _arrives(self, run: ProgramRun, now: float) -> None:
        """Place a turn whose program has just come, or come back."""
        name = run.program.program
        if name in self._failed:
            return
        if name not in self._carrier.journeys:
            self._carrier.journeys[name] = Journey(run.program, run.arrival)
        run.ideal = self._ideal.prefill(run.turn)
        if self._foretell is not None:
            self._foretell.arrives(run, now)
        request = run.request()
        if self._decoding is not None:
            request = replace(request, max_output=1)
        flight = Flight(run, request, self._serving, now)
        self._carrier.flights[request.turn_id] = flight
        self._carrier.place(flight, now)

    def _finished(self, stats: TurnStats, now: float) -> None:
        if stats.turn_id in self._carrier.withdrawn:
            self._carrier.withdrawn.discard(stats.turn_id)
            return
        flight = self._carrier.flights.pop(stats.turn_id, None)
        if flight is None:
            return  # cancelled together with its program, which is already accounted for
        tokens = stats.prompt_tokens + stats.output_tokens
        flight.group.router.finished(stats.turn_id, tokens, now)
        whole = flight.run.turn.output_tokens
        served = stats.reason in ("stop", "length")
        if served and self._decoding is not None and flight.prefilled is None and whole > 1:
            self._go_on_decoding(flight, stats, whole, now)
        else:
            self._complete(flight, flight.account(stats), now)

    def _go_on_decoding(self, flight: Flight, stats: TurnStats, whole: int, now: float) -> None:
        """Hand a prefilled turn, with its first token, to a worker that decodes."""
        if self._decoding is None:
            raise InternalError("There is no group that decodes.")
        request = replace(flight.request, max_output=whole - 1)
        onward = Flight(flight.run, request, self._decoding, now)
        onward.prefilled, onward.prefiller = stats, flight.worker
        self._carrier.flights[stats.turn_id] = onward
        self._carrier.place(onward, now)

    def _complete(self, flight: Flight, stats: TurnStats, now: float) -> None:
        run, journey = flight.run, self._carrier.journeys[stats.program_id]
        self._done[1] += 1
        self._ledger.turn(run.program, run.index, run.ideal, stats)
        if stats.reason not in ("stop", "length"):
            self._end(journey, now, f"Turn {run.index} ended as {stats.reason}.")
        elif run.is_last:
            self._end(journey, now)
        else:
            self._away.leave(run, stats.finished)

    # -- programs ------------------------------------------------------------------------------

    def _end(self, journey: Journey, now: float, failed: str = "") -> None:
        name = journey.program.program
        self._carrier.journeys.pop(name, None)
        self._done[0] += 1
        if self._foretell is not None:
            self._foretell.ends(ProgramRun(journey.program, journey.arrival))
        if failed:
            self._forget_others(name)
        for worker in journey.seen:
            worker.scheduler.end_program(name, now)
        outcome: ProgramOutcome = "failed" if failed else "finished"
        self._ledger.program(journey.program, journey.arrival, now, outcome, failed)
        for group in self._groups:
            group.router.end_program(name, now)
        for worker, group in journey.seen.items():
            self._handle(group, worker.scheduler.take_events(), now)
        if self._away.tools is not None:
            self._away.tools.forget(name)

    def _forget_others(self, name: str) -> None:
        """Of a program that has failed no other turn counts or comes any more."""
        self._failed.add(name)
        for turn, flight in list(self._carrier.flights.items()):
            if flight.request.program_id == name:
                del self._carrier.flights[turn]
                if flight.worker is not None:
                    flight.worker.withdraw(turn)

    def _abandon(self) -> None:
        """Account for programs that had arrived when the run was stopped."""
        for journey in sorted(self._carrier.journeys.values(), key=lambda row: row.arrival):
            self._ledger.program(
                journey.program,
                journey.arrival,
                self.clock.now,
                "cancelled",
                "The run was stopped.",
            )

    # -- reports -------------------------------------------------------------------------------

    def _sample(self, now: float) -> None:
        self._ledger.sampler.add(now, total(worker.scheduler.statistics() for worker in self._all))

    @property
    def _all(self) -> list[SimulatedWorker]:
        return [worker for group in self._groups for worker in group.workers.values()]

    def _report(self, now: float) -> None:
        self.events += 1
        if self._progress is None or self.events % PROGRESS_EVENTS:
            return
        pending = sum(group.router.pending for group in self._groups)
        self._progress(
            RunProgress(
                policy=self._ledger.record.policy,
                seed=self._ledger.record.seed,
                now=now,
                programs_done=self._done[0],
                programs=self._totals[0],
                turns_done=self._done[1],
                turns=self._totals[1],
                running=len(self._carrier.flights) - pending,
                waiting=pending,
            )
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if a scheduler, a router or the tool hosts disagree."""
        for group in self._groups:
            group.router.check_integrity()
        for worker in self._all:
            worker.scheduler.check_integrity()
        if self._away.tools is not None:
            self._away.tools.check_integrity()
