"""Runs programs through many schedulers under one virtual clock; the real router places turns.

    heap of events, by time:   a worker's step ends   before   turns arrive   before   the rest
    after all of one moment:   every worker that has no step plans its next one

With one worker this gives, turn by turn, exactly what :class:`agentrt.simulation.run.Simulation`
gives. A worker's long decode step is planned without knowing what will arrive; an arrival cuts it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agentrt.bench.recorder import Progress, RunProgress
from agentrt.bench.records import ProgramOutcome
from agentrt.bench.workload import Program
from agentrt.cluster.placement import TurnAsk
from agentrt.cluster.state import Assignment
from agentrt.errors import InternalError
from agentrt.scheduling.plan import (
    Event,
    PinEnded,
    TurnAdmitted,
    TurnFinished,
    TurnStats,
)
from agentrt.simulation.clock import VirtualClock
from agentrt.simulation.flights import Away, Flight, Journey
from agentrt.simulation.groups import Group, total
from agentrt.simulation.network import Network
from agentrt.simulation.programs import IdealCache, ProgramRun
from agentrt.simulation.tally import Ledger
from agentrt.simulation.toolhosts import ToolHosts
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["ClusterSimulation"]

STEP, CALL, ARRIVAL, DELIVERY, COPY, SCALE, EPOCH = range(7)
EPOCH_SECONDS = 0.1
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
        stop: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.events = 0
        self._serving = serving
        self._decoding = decoding
        self._groups = [serving] if decoding is None else [serving, decoding]
        self._ledger = ledger
        self._network = network
        self._away = Away(
            tools,
            tool_memory,
            ledger,
            lambda time, run: self._push(time, ARRIVAL, run),
            lambda time, call: self._push(time, CALL, call),
        )
        self._failed: set[str] = set()
        self._stop = stop
        self._progress = progress
        self._order = itertools.count()
        self._heap: list[tuple[float, int, int, Any]] = []
        self._ready: dict[SimulatedWorker, Group] = {}
        self._flights: dict[str, Flight] = {}
        self._journeys: dict[str, Journey] = {}
        self._withdrawn: set[str] = set()
        self._ideal = IdealCache()
        self._epoch_due = False
        self._done = [0, 0]
        self._totals = (len(arrivals), sum(len(program.turns) for _, program in arrivals))
        for time, program in arrivals:
            for run in ProgramRun(program, time).first_turns():
                self._push(time, ARRIVAL, run)
        for time, change in scale:
            self._push(time, SCALE, change)

    def run(self) -> bool:
        """Run to the end; False if ``stop`` ended it sooner."""
        while self._heap:
            if self._stop():
                self._abandon()
                return False
            now = self.clock.advance_to(max(self._heap[0][0], self.clock.now))
            while self._heap and self._heap[0][0] <= now:
                _, kind, _, what = heapq.heappop(self._heap)
                self._dispatch(kind, what, now)
            self._plan_ready(now)
            self._report(now)
        if self._flights:
            raise InternalError(f"{len(self._flights)} turns wait, yet no worker plans anything.")
        self._sample(self.clock.now)
        return True

    def _push(self, time: float, kind: int, what: Any) -> None:
        heapq.heappush(self._heap, (time, kind, next(self._order), what))

    def _dispatch(self, kind: int, what: Any, now: float) -> None:
        if kind == STEP:
            self._step_ended(*what, now)
        elif kind == ARRIVAL:
            self._arrives(what, now)
        elif kind == CALL:
            self._away.call_ended(what, now)
        elif kind == DELIVERY:
            self._delivered(*what, now)
        elif kind == COPY:
            self._copied(*what)
        elif kind == SCALE:
            self._scale(what, now)
        else:
            self._rebalance(now)

    # -- workers' steps ------------------------------------------------------------------------

    def _plan_ready(self, now: float) -> None:
        while self._ready:
            worker, group = self._ready.popitem()
            for refused in worker.take_in():
                flight = self._flights.pop(refused.turn_id, None)
                if flight is not None:
                    self._end(self._journeys[flight.request.program_id], now, refused.reason)
            end = worker.plan(now)
            self._handle(group, worker.scheduler.take_events(), now)
            if end is not None:
                self._push(end, STEP, (worker, worker.version, group))
            elif worker.next_copy() < math.inf:
                self._push(worker.next_copy(), COPY, (worker, group))

    def _step_ended(self, worker: SimulatedWorker, version: int, group: Group, now: float) -> None:
        if version != worker.version:
            return  # it was cut short, and another event stands for its end
        self._handle(group, worker.commit(now), now)
        self._ready[worker] = group
        if now >= self._ledger.sampler.due:
            self._sample(now)

    def _copied(self, worker: SimulatedWorker, group: Group) -> None:
        if not worker.busy:
            self._ready[worker] = group

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
        if name not in self._journeys:
            self._journeys[name] = Journey(run.program, run.arrival)
        run.ideal = self._ideal.prefill(run.turn)
        request = run.request()
        if self._decoding is not None:
            request = replace(request, max_output=1)
        flight = Flight(run, request, self._serving, now)
        self._flights[request.turn_id] = flight
        self._place(flight, now)

    def _place(self, flight: Flight, now: float) -> None:
        request, turn = flight.request, flight.run.turn
        ask = TurnAsk(
            request.turn_id,
            request.program_id,
            len(request.tokens),
            request.max_output,
            turn.blocks,
            turn.block_tokens,
        )
        assigned = flight.group.router.submit(ask, now)
        self._route(flight, assigned, now)
        self._plan_epoch(flight.group, now)

    def _route(self, flight: Flight, assigned: Assignment, now: float) -> None:
        """Send a turn to its worker, after the KV that it needs."""
        group, request = flight.group, flight.request
        target = flight.worker = group.workers[assigned.worker]
        self._journeys[request.program_id].seen[target] = group
        source = group.workers[assigned.source] if assigned.source is not None else None
        pages = source.held(request) if source is not None else 0
        if source is not None:
            source.scheduler.end_program(request.program_id, now)
            self._handle(group, source.scheduler.take_events(), now)
        if flight.prefilled is not None:
            source = self._prefiller(flight)
            pages = (len(request.tokens) - 1) // target.cache.page_size
        missing = pages - target.held(request) if pages else 0
        if source is None or missing <= 0:
            self._deliver(flight, now)
            return
        flight.travelling = True
        tokens = missing * target.cache.page_size
        self._push(
            self._network.send(source.name, target.name, tokens, now), DELIVERY, (flight, pages)
        )

    def _prefiller(self, flight: Flight) -> SimulatedWorker:
        home = self._serving.router.home(flight.request.program_id)
        if home is None:
            raise InternalError(f"Nobody has prefilled {flight.request.turn_id}.")
        return self._serving.workers[home]

    def _delivered(self, flight: Flight, pages: int, now: float) -> None:
        if self._flights.get(flight.request.turn_id) is not flight or flight.worker is None:
            return
        flight.travelling = False
        flight.worker.bring(flight.request, pages, now)
        self._deliver(flight, now)

    def _deliver(self, flight: Flight, now: float) -> None:
        worker = flight.worker
        if worker is None:
            raise InternalError(f"{flight.request.turn_id} has no worker.")
        worker.deliver(flight.request, flight.submitted)
        if not worker.busy:
            self._ready[worker] = flight.group
            return
        end = worker.cut(now)
        if end is not None:
            self._push(end, STEP, (worker, worker.version, flight.group))

    def _finished(self, stats: TurnStats, now: float) -> None:
        if stats.turn_id in self._withdrawn:
            self._withdrawn.discard(stats.turn_id)
            return
        flight = self._flights.pop(stats.turn_id, None)
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
        onward = Flight(flight.run, request, self._decoding, now, prefilled=stats)
        self._flights[stats.turn_id] = onward
        self._place(onward, now)

    def _complete(self, flight: Flight, stats: TurnStats, now: float) -> None:
        run, journey = flight.run, self._journeys[stats.program_id]
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
        self._journeys.pop(name, None)
        self._done[0] += 1
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
        for turn, flight in list(self._flights.items()):
            if flight.request.program_id == name:
                del self._flights[turn]
                if flight.worker is not None:
                    flight.worker.withdraw(turn)

    def _abandon(self) -> None:
        """Account for programs that had arrived when the run was stopped."""
        for journey in sorted(self._journeys.values(), key=lambda row: row.arrival):
            self._ledger.program(
                journey.program,
                journey.arrival,
                self.clock.now,
                "cancelled",
                "The run was stopped.",
            )

    # -- moving turns --------------------------------------------------------------------------

    def _plan_epoch(self, group: Group, now: float) -> None:
        """See to it that idle workers ask for work while turns wait."""
        if group.router.placement.steal is None or self._epoch_due or len(group.workers) == 1:
            return
        self._epoch_due = True
        epoch = int(now / EPOCH_SECONDS) + 1
        if epoch * EPOCH_SECONDS <= now:  # the division was rounded down
            epoch += 1
        self._push(epoch * EPOCH_SECONDS, EPOCH, None)

    def _rebalance(self, now: float) -> None:
        self._epoch_due = False
        for group in self._groups:
            for steal in group.router.rebalance(now):
                flight = self._flights[steal.turn_id]
                if flight.travelling:
                    continue
                moved = group.router.accept_steal(steal, now)
                if moved is not None:
                    self._redirect(flight, moved, now)
            if group.router.pending and self._heap:
                self._plan_epoch(group, now)

    def _redirect(self, flight: Flight, moved: Assignment, now: float) -> None:
        """Take a waiting turn back from its worker and send it to another one."""
        worker, turn = flight.worker, flight.request.turn_id
        if flight.travelling or worker is None:
            flight.worker = flight.group.workers[moved.worker]
            self._journeys[moved.program_id].seen[flight.worker] = flight.group
            return
        if worker.withdraw(turn) is None:
            self._withdrawn.add(turn)
            if not worker.scheduler.cancel(turn, now):
                raise InternalError(f"{turn} is neither at {worker.name} nor on its way there.")
            self._handle(flight.group, worker.scheduler.take_events(), now)
        self._route(flight, moved, now)

    def _scale(self, change: int, now: float) -> None:
        group = self._serving
        group.grow(max(change, 0), now)
        self._plan_epoch(group, now)
        names = [worker.name for worker in group.router.accepting()]
        for name in reversed(names[len(names) + change :] if change < 0 else []):
            for moved in group.router.drain_worker(name, now):
                self._redirect(self._flights[moved.turn_id], moved, now)

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
                running=len(self._flights) - pending,
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
