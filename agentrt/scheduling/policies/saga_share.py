"""SAGA's agent fair share (AFS): tenants by how urgent the rest of their work is.

Source: arXiv 2605.00528, section on fair shares::

    AFS_i = sum over the tenant's programs t of  work_left(t) / (deadline(t) - now)
    work_left = seconds to prefill and decode what is still expected
    deadline = arrival + 1.5 * expected completion time

Capacity goes to tenants in proportion; where one device serves all, that is: the tenant with the
largest share first, its programs by arrival. A tenant of low AFS gives way to one whose turn it has
kept for 500 ms and whose AFS is more than twice its own. Shares are settled every 100 ms.

Open in the paper, chosen here: what is expected comes from the execution graph; the expected
completion time is the mean of the agent type's ended programs, before any has ended the work
itself; seconds a decoded token are learned from steps (20 ms before); a client's deadline is
taken as said; past it, or less than a second before it, a second is left.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from agentrt.scheduling.graph import ExecutionGraphs, TurnFacts
from agentrt.scheduling.graph_profile import Mean
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import Listener, PrefillSeconds, ProgramView, TurnView

__all__ = ["FairShares", "fair_share"]

EPOCH = 0.1
SLACK = 1.5
LEAST_LEFT = 1.0
PATIENCE = 0.5
OUTRANKS = 2.0
DECODE_SECONDS = 0.02
MAX_AGENTS = 256


def fair_share(work: float, deadline: float, now: float) -> float:
    """Return one program's part of its tenant's AFS."""
    return work / max(deadline - now, LEAST_LEFT)


@dataclass(slots=True)
class _Task:
    agent: str
    work: float
    deadline: float


class FairShares(Listener):
    """The AFS of every tenant. It also tells the execution graphs what programs do."""

    def __init__(self, graphs: ExecutionGraphs, prefill_seconds: PrefillSeconds) -> None:
        self._graphs = graphs
        self._prefill_seconds = prefill_seconds
        self._decode = Mean()
        self._completion: dict[str, Mean] = {}
        self._tasks: dict[ProgramView, _Task] = {}
        self._shares: dict[Hashable, float] = {}
        self._settled = float("-inf")

    def share(self, tenant: str) -> float:
        """Return a tenant's AFS as last settled."""
        return self._shares.get(tenant, 0.0)

    # --- what happens

    def submitted(self, turn: TurnView, now: float) -> None:
        """A program's first turn sets its deadline; a client's overrides it at any turn."""
        task = self._tasks.get(turn.program)
        if task is None:
            task = self._tasks[turn.program] = self._begin(turn)
        if turn.hints.program_deadline is not None:
            task.deadline = turn.hints.program_deadline

    def _begin(self, turn: TurnView) -> _Task:
        agent = turn.hints.agent or ""
        forecast = self._graphs.forecast(turn.program_id, turn.context)
        own = self._seconds(turn.length, turn.max_output)
        work = own + self._seconds(forecast.remaining_new, forecast.remaining_output)
        known = self._completion.get(agent)
        expected = known.value if known is not None else work
        return _Task(agent, work, turn.program_arrival + SLACK * expected)

    def _seconds(self, new: float, output: float) -> float:
        decode = self._decode.value if self._decode.count else DECODE_SECONDS
        return self._prefill_seconds(round(new)) + decode * output

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Learn what a decoded token takes."""
        if decoded and not prefilled:
            self._decode.add(seconds / decoded)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Tell the graphs of a turn that was served, and expect the rest anew."""
        if reason not in ("stop", "length"):
            return
        facts = TurnFacts(
            turn.tool, turn.prompt_tokens, turn.output, turn.context, turn.hints.agent
        )
        self._graphs.turn_ended(turn.program_id, facts)
        forecast = self._graphs.forecast(turn.program_id, turn.context)
        work = self._seconds(forecast.remaining_new, forecast.remaining_output)
        self._tasks[turn.program].work = work

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Learn how long a program took; one that was never served teaches nothing."""
        task = self._tasks.pop(program, None)
        if task is None or program.turns_served == 0:
            self._graphs.forget(program.program_id)
            return
        self._graphs.program_ended(program.program_id)
        if task.agent in self._completion or len(self._completion) < MAX_AGENTS:
            self._completion.setdefault(task.agent, Mean()).add(now - program.arrival)

    # --- shares, groups, preemption

    def tick(self, now: float) -> None:
        """Settle the shares of an epoch."""
        if now - self._settled < EPOCH:
            return
        self._settled = now
        self._shares = {}
        for program, task in self._tasks.items():
            part = fair_share(task.work, task.deadline, now)
            self._shares[program.tenant] = self.share(program.tenant) + part

    def group(self, turn: TurnView) -> Hashable:
        """Return the turn's tenant."""
        return turn.tenant

    def key(self, group: Hashable) -> Any:
        """Rank tenants by their AFS, the largest first."""
        return -self._shares.get(group, 0.0)

    def preempts(self, waiting: TurnView, running: TurnView, now: float) -> bool:
        """Return whether a tenant of low share has kept one of high share for too long."""
        if waiting.tenant == running.tenant or now - waiting.submitted <= PATIENCE:
            return False
        return self.share(waiting.tenant) > OUTRANKS * self.share(running.tenant)
