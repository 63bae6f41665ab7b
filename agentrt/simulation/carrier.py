"""Gets turns to their workers: placement, KV over the network, steals, workers that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agentrt.cluster.placement import TurnAsk
from agentrt.cluster.state import Assignment
from agentrt.errors import InternalError
from agentrt.scheduling.plan import Event
from agentrt.simulation.eventqueue import EventQueue, Kind
from agentrt.simulation.flights import Flight, Journey
from agentrt.simulation.groups import Group
from agentrt.simulation.network import Network
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["Carrier"]

EPOCH_SECONDS = 0.1
"""How often idle workers ask for work (SAGA, arXiv 2605.00528)."""

Handle: TypeAlias = Callable[[Group, Sequence[Event], float], None]


class Carrier:
    """Holds the turns on their way and the workers that are to plan a step.

    Args:
        network: between workers.
        queue: of the simulation.
        handle: takes the events of a scheduler.
    """

    def __init__(self, network: Network, queue: EventQueue, handle: Handle) -> None:
        self.flights: dict[str, Flight] = {}
        self.journeys: dict[str, Journey] = {}
        self.ready: dict[SimulatedWorker, Group] = {}
        self.withdrawn: set[str] = set()
        self._network = network
        self._queue = queue
        self._handle = handle
        self._epoch_due = False

    def place(self, flight: Flight, now: float) -> None:
        """Give a turn a worker and send it there."""
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
        self.journeys[request.program_id].seen[target] = group
        source = group.workers[assigned.source] if assigned.source is not None else None
        pages = source.held(request) if source is not None else 0
        if source is not None:
            source.scheduler.end_program(request.program_id, now)
            self._handle(group, source.scheduler.take_events(), now)
        if flight.prefiller is not None:
            source = flight.prefiller
            pages = (len(request.tokens) - 1) // target.cache.page_size
        missing = pages - target.held(request) if pages else 0
        if source is None or missing <= 0:
            self._deliver(flight, now)
            return
        flight.travelling = True
        tokens = missing * target.cache.page_size
        there = self._network.send(source.name, target.name, tokens, now)
        self._queue.push(there, Kind.DELIVERY, (flight, pages))

    def delivered(self, flight: Flight, pages: int, now: float) -> None:
        """A turn's KV is there: cache it and hand the turn in."""
        if self.flights.get(flight.request.turn_id) is not flight or flight.worker is None:
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
            self.ready[worker] = flight.group
            return
        end = worker.cut(now)
        if end is not None:
            self._queue.push(end, Kind.STEP, (worker, worker.version, flight.group))

    # -- moving turns --------------------------------------------------------------------------

    def _plan_epoch(self, group: Group, now: float) -> None:
        """See to it that idle workers ask for work while turns wait."""
        if group.router.placement.steal is None or self._epoch_due or len(group.workers) == 1:
            return
        self._epoch_due = True
        epoch = int(now / EPOCH_SECONDS) + 1
        if epoch * EPOCH_SECONDS <= now:  # the division was rounded down
            epoch += 1
        self._queue.push(epoch * EPOCH_SECONDS, Kind.EPOCH, None)

    def rebalance(self, groups: Sequence[Group], now: float) -> None:
        """Carry out what idle workers would steal."""
        self._epoch_due = False
        for group in groups:
            for steal in group.router.rebalance(now):
                flight = self.flights[steal.turn_id]
                if flight.travelling:
                    continue
                moved = group.router.accept_steal(steal, now)
                if moved is not None:
                    self._redirect(flight, moved, now)
            if group.router.pending and self._queue:
                self._plan_epoch(group, now)

    def _redirect(self, flight: Flight, moved: Assignment, now: float) -> None:
        """Take a waiting turn back from its worker and send it to another one."""
        worker, turn = flight.worker, flight.request.turn_id
        if flight.travelling or worker is None:
            flight.worker = flight.group.workers[moved.worker]
            self.journeys[moved.program_id].seen[flight.worker] = flight.group
            return
        if worker.withdraw(turn) is None:
            self.withdrawn.add(turn)
            if not worker.scheduler.cancel(turn, now):
                raise InternalError(f"{turn} is neither at {worker.name} nor on its way there.")
            self._handle(flight.group, worker.scheduler.take_events(), now)
        self._route(flight, moved, now)

    def scale(self, group: Group, change: int, now: float) -> None:
        """Let workers join, or the last ones that joined drain."""
        group.grow(max(change, 0), now)
        self._plan_epoch(group, now)
        names = [worker.name for worker in group.router.accepting()]
        for name in reversed(names[len(names) + change :] if change < 0 else []):
            for moved in group.router.drain_worker(name, now):
                self._redirect(self.flights[moved.turn_id], moved, now)
