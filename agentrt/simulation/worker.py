"""One engine of a simulated cluster: the real scheduler and page cache, steps from a cost model.

A stretch of pure decoding is planned as one long step. Whoever sends a turn here meanwhile cuts it
at the next repetition, exactly as if the arrival had been known when it was planned.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from agentrt.errors import CapacityError, InternalError
from agentrt.scheduling.kv import KVCache
from agentrt.scheduling.plan import Event, StepPlan, TurnRequest
from agentrt.scheduling.scheduler import Scheduler
from agentrt.simulation.cost import CostModel, StepCost
from agentrt.simulation.link import Link
from agentrt.simulation.programs import sampled

__all__ = ["LONGEST_REPEAT", "Refused", "SimulatedWorker"]

LONGEST_REPEAT = 1 << 20
"""Most repetitions asked for at once; the next event cuts them shorter."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A turn that its worker can never serve, and why."""

    turn_id: str
    reason: str


@dataclass(slots=True)
class _Step:
    plan: StepPlan
    start: float
    cost: StepCost
    repeat: int

    @property
    def end(self) -> float:
        return self.start + self.cost.total(self.repeat)


class SimulatedWorker:
    """Drives one scheduler. ``version`` names the step under way: an end of another one is void."""

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        cache: KVCache,
        cost: CostModel,
        *,
        link: Link | None = None,
        jump: bool = True,
    ) -> None:
        self.name = name
        self.scheduler = scheduler
        self.cache = cache
        self.cost = cost
        self.version = 0
        self._link = link
        self._horizon = LONGEST_REPEAT if jump else 1
        self._inbox: list[tuple[TurnRequest, float]] = []
        self._step: _Step | None = None

    @property
    def busy(self) -> bool:
        """Whether a step is under way."""
        return self._step is not None

    def deliver(self, request: TurnRequest, submitted: float) -> None:
        """Take in a turn: it is handed to the scheduler, as of ``submitted``, between steps."""
        self._inbox.append((request, submitted))

    def withdraw(self, turn_id: str) -> TurnRequest | None:
        """Give a turn back that waits in the inbox; None if it is not there (any more)."""
        for at, (request, _) in enumerate(self._inbox):
            if request.turn_id == turn_id:
                del self._inbox[at]
                return request
        return None

    def cut(self, now: float) -> float | None:
        """End a repeated step at the first repetition that ends from ``now`` on.

        Returns its new end, or None if the end is what it was.
        """
        step = self._step
        if step is None or step.repeat == 1:
            return None
        repeat = step.cost.repetitions(now - step.start, step.repeat)
        if repeat == step.repeat:
            return None
        step.repeat = repeat
        self.version += 1
        return step.end

    def take_in(self) -> list[Refused]:
        """Hand the inbox to the scheduler; return what can never be served."""
        refused: list[Refused] = []
        for request, submitted in self._inbox:
            try:
                self.scheduler.submit(request, submitted)
            except CapacityError as error:
                refused.append(Refused(request.turn_id, str(error)))
        self._inbox.clear()
        return refused

    def plan(self, now: float) -> float | None:
        """Begin the next step; return its end, or None if there is nothing to run."""
        if self._step is not None:
            raise InternalError(f"{self.name} was asked for a step while one is under way.")
        if self._link is not None:
            self.scheduler.transferred(self._link.take_done(now), now)
        plan = self.scheduler.plan(now, self._horizon)
        if self._link is not None:
            self._link.begin(plan.transfers, now)
        if not plan.slices:
            return None
        cost, repeat = self.cost.step(plan), plan.repeat
        if repeat > 1:
            repeat = cost.repetitions(self._next_decision(now) - now, repeat)
        self._step = _Step(plan, now, cost, repeat)
        self.version += 1
        return self._step.end

    def _next_decision(self, now: float) -> float:
        """Return when something may happen that a repeated step must not run past."""
        deadline = self.scheduler.next_deadline(now)
        return min(self.next_copy(), math.inf if deadline is None else deadline)

    def next_copy(self) -> float:
        """Return when the next copy from or to the host tier is done or wanted; else infinity."""
        if self._link is None:
            return math.inf
        wanted = self.scheduler.next_prefetch()
        return min(self._link.next_done(), math.inf if wanted is None else wanted)

    def commit(self, now: float) -> list[Event]:
        """End the step under way; return what the scheduler made of it."""
        step = self._step
        if step is None:
            raise InternalError(f"{self.name} has no step that could end.")
        self._step = None
        return self.scheduler.commit(step.plan, sampled(step.plan, step.repeat), now)

    # -- KV that comes and goes over the network -----------------------------------------------

    def held(self, request: TurnRequest) -> int:
        """Return how many leading pages of a turn's tokens are cached here."""
        return self.cache.match(self._keys(request))

    def bring(self, request: TurnRequest, pages: int, now: float) -> bool:
        """Cache the first ``pages`` pages of a turn's tokens, as if they had been computed here.

        Like all cached pages they may be evicted before the turn starts. False: there is no room.
        """
        keys = self._keys(request)[:pages]
        owner = f"{request.program_id}\0{request.context}"
        lease = self.cache.acquire(owner, keys, len(keys), now)
        if lease is None:
            return False
        self.cache.publish(lease, keys, now)
        self.cache.release(lease, now)
        return True

    def _keys(self, request: TurnRequest) -> Sequence[Hashable]:
        page = self.cache.page_size
        return request.tokens.page_keys(page, (len(request.tokens) - 1) // page)
