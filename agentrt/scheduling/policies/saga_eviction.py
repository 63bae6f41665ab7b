"""SAGA's workflow-aware LRU (WA-LRU): sessions are evicted by age, chance of reuse and size.

Source: arXiv 2605.00528, section on WA-LRU. The session with the largest score goes first, live
pins are spared::

    P_evict = 0.3 * R + 0.5 * (1 - P_reuse) + 0.2 * S
    R = (now - last use) / tau_max          S = size / the largest session's size
    P_reuse = sum over successors u of P(s -> u) * overlap(s, u)

``P_reuse`` is the execution graph's (``graph.py``), with ``overlap = n / (n + n_obs)`` for a ReAct
loop, as the text has it (Eq. 5 gives 1). Open in the paper, chosen here: ``tau_max`` is 300 s, the
longest TTL, and older is not worse; a run of pages shared by sessions counts as the likeliest of
them; one of no living session has ``P_reuse = 0``; a client that says how many turns are left is
believed as an explicit graph is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentrt.scheduling.graph import ExecutionGraphs
from agentrt.scheduling.kv import CachedRun
from agentrt.scheduling.policies.saga_ttl import LONGEST, ToolTimes, tool_ttl
from agentrt.scheduling.policy import KeepNothing, Listener, PoolView, ProgramView, TurnView

__all__ = ["Clock", "WorkflowRetention", "eviction_score"]

AGE_WEIGHT, REUSE_WEIGHT, SIZE_WEIGHT = 0.3, 0.5, 0.2


def eviction_score(age: float, reuse: float, size: float) -> float:
    """Return ``P_evict``; all arguments lie between 0 and 1."""
    return AGE_WEIGHT * age + REUSE_WEIGHT * (1.0 - reuse) + SIZE_WEIGHT * size


class Clock(Listener):
    """The time of the latest step, how full the pool is, and whose programs are gone."""

    def __init__(self, gone: Callable[[ProgramView], None]) -> None:
        self.now = 0.0
        self._pool: PoolView | None = None
        self._gone = gone

    def opened(self, pool: PoolView) -> None:
        """Keep the pool."""
        self._pool = pool

    def tick(self, now: float) -> None:
        """Keep the time."""
        self.now = now

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Pass it on."""
        self._gone(program)

    def used(self) -> float:
        """Return the share of the pool that turns and pins hold."""
        if self._pool is None:
            return 0.0
        return 1.0 - self._pool.available / self._pool.capacity


@dataclass(slots=True)
class _Session:
    """What is known of a context since its latest turn ended: ``tokens``, and ``P_reuse``."""

    tokens: int
    reuse: float


class WorkflowRetention(KeepNothing):
    """WA-LRU over what is not pinned, and pins by tool type."""

    rescore = True

    def __init__(self, graphs: ExecutionGraphs) -> None:
        super().__init__(lambda run: run.last_used)
        self.clock = Clock(self._forget)
        self._graphs = graphs
        self._times = ToolTimes()
        self._sessions: dict[str, _Session] = {}
        self._largest = 1

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return the TTL of the tool that the turn called; 0 if it called none."""
        reuse = self._graphs.forecast(turn.program_id, turn.context).reuse
        if turn.hints.remaining_turns is not None and turn.hints.remaining_turns <= 0:
            reuse = 0.0
        self._sessions[turn.state.owner] = _Session(turn.length, reuse)
        self._largest = max(session.tokens for session in self._sessions.values())
        if turn.tool is None:
            return 0.0
        return tool_ttl(self._times.p95(turn.tool), self.clock.used())

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn how long a tool of this type keeps a context away."""
        if tool is not None:
            self._times.add(tool, gap)

    def score(self, run: CachedRun) -> Any:
        """Rank by ``-P_evict``."""
        sessions = [one for owner in run.owners if (one := self._sessions.get(owner)) is not None]
        age = min(max(self.clock.now - run.last_used, 0.0) / LONGEST, 1.0)
        reuse = max((session.reuse for session in sessions), default=0.0)
        size = max((session.tokens for session in sessions), default=0) / self._largest
        return -eviction_score(age, reuse, min(size, 1.0))

    def _forget(self, program: ProgramView) -> None:
        for context in program.contexts.values():
            self._sessions.pop(context.owner, None)
