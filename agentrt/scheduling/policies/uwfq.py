"""UWFQ: two levels of weighted fair queueing, tenants first and programs inside each.

Source: arXiv 2510.15485 (for Spark jobs): users share as under generalised processor sharing, and
inside a user jobs go by virtual finish time, which is fixed when a job arrives::

    F_p = V_u(arrival) + C_p        V_u advances by  service / programs under way  of the tenant

The tenant with the least virtual time is served; inside it the program with the least ``F_p``. That
a rank never changes while a turn waits keeps the queue a heap.

Left open for agents, chosen here: the cost ``C_p`` of a program is not known when it arrives. It is
the mean service of the tenant's programs that have ended, or, where the client says how many turns
are left, so many times the mean service of a turn; without either, 0: by arrival. Preempted turns
go first inside their tenant. Eviction takes what no living context needs, then the least recently
used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrt.scheduling.fairness import TenantClock
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import KeepNothing, Policy, ProgramView, TurnView, program_score
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["ProgramClock", "uwfq"]


@dataclass(slots=True)
class _Local:
    """A tenant's own virtual time and what its programs took so far."""

    time: float = 0.0
    under_way: int = 0
    programs: int = 0
    turns: int = 0
    service: float = 0.0


class ProgramClock(TenantClock):
    """Tenants' virtual times, and inside each the programs' virtual finish times."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self._local: dict[str, _Local] = {}
        self._finish: dict[str, float] = {}

    def order(self, turn: TurnView) -> tuple[Any, ...]:
        """Rank by the program's virtual finish time, preempted turns first."""
        finish = self._finish.get(turn.program_id, 0.0)
        return (turn.preemptions == 0, finish, turn.program_arrival, turn.submitted, turn.sequence)

    def submitted(self, turn: TurnView, now: float) -> None:
        """Fix the finish time of a program that is new."""
        super().submitted(turn, now)
        if turn.program_id not in self._finish:
            local = self._local.setdefault(turn.tenant, _Local())
            local.under_way += 1
            self._finish[turn.program_id] = local.time + self._expected(local, turn)

    def _expected(self, local: _Local, turn: TurnView) -> float:
        """Return the service that a program is expected to take."""
        left = turn.hints.remaining_turns
        if left is not None and local.turns:
            return (left + 1) * local.service / local.turns
        return local.service / local.programs if local.programs else 0.0

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Let the tenant's own time pass by what the turn took."""
        tenant = self.tenants[turn.tenant]
        before = tenant.service - self.charged(turn)
        super().ended(turn, reason, now)
        local = self._local[turn.tenant]
        local.time += (tenant.service - before) / max(1, local.under_way)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Learn what a program of the tenant takes."""
        if self._finish.pop(program.program_id, None) is None:
            return
        local = self._local[program.tenant]
        local.under_way -= 1
        local.programs += 1
        local.turns += program.turns_served
        local.service += self.cost.of(program.prefilled, program.decoded)


def uwfq(around: Surroundings) -> Policy:
    """Return two-level fair queueing with the tenants' weights."""
    clock = ProgramClock(around.tenants)
    return Policy("uwfq", clock.order, KeepNothing(program_score), groups=clock, listeners=(clock,))
