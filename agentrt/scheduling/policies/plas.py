"""Autellix: programs by attained service, in queues of several levels, with preemption.

Source: arXiv 2502.13965 (Agentix, NSDI'26). The priority of a call is what its program has already
attained, in seconds of completed calls, as it was when the call arrived. For programs of parallel
calls (ATLAS) that is the longest chain, of which the sum over one thread (PLAS) is a case::

    p(program) <- max(p(program), p(call) + seconds(call))       when a call ends

``p`` is mapped to one of K queues; queues are served in order, each first come, first served. A
call that uses up its queue's quantum goes down one queue; a call in a higher queue takes the place
of one in a lower. Against starvation, with the waiting and service of the program's ended calls and
of the call itself, a call goes to the top queue, and its own counts start anew::

    (W_program + W_call) / (T_program + T_call) >= beta

Each call of a step is charged the whole step.

Left open by the paper, chosen here: ``K = 10``; bounds of a quarter to the next, the first one what
2,048 tokens take to prefill (known ports: 2,048, 8,192, 32,768 tokens, and ``K = 10``); a queue's
quantum is its width; ``beta = 2`` (ports: 2 and 0.5); eviction by LRU; a call gives way at most
once.

Known defect: what a program has attained says little of what it still needs. Long programs that are
nearly done rank last, which is why the paper's gains do not carry over to coding agents; and as
soon as everybody waits twice as long as it is served, ``beta`` sends all to the top queue, which is
then plain ``fcfs``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import (
    KeepNothing,
    Listener,
    Policy,
    PoolView,
    PrefillSeconds,
    ProgramView,
    TurnView,
    Verdict,
    lru_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["AttainedService", "plas"]

LEVELS = 10
FIRST_BOUND_TOKENS = 2048
BOUND_RATIO = 4
BETA = 2.0


@dataclass(slots=True)
class _Attained:
    """What a program's ended calls attained (the longest chain), waited and were served."""

    scalar: float = 0.0
    waited: float = 0.0
    served: float = 0.0


@dataclass(slots=True)
class _Call:
    """A live call. ``since``: until when its time is booked. Seconds."""

    inherited: float
    level: int
    since: float
    quantum_used: float = 0.0
    attained: float = 0.0
    waited: float = 0.0
    served: float = 0.0


class AttainedService(Listener):
    """Levels of live calls, 0 the most urgent; also an admission that says when levels change."""

    def __init__(self, prefill_seconds: PrefillSeconds, beta: float = BETA) -> None:
        self._prefill_seconds = prefill_seconds
        self._beta = beta
        self._programs: dict[ProgramView, _Attained] = {}
        self._calls: dict[TurnView, _Call] = {}
        self._pool: PoolView | None = None

    def opened(self, pool: PoolView) -> None:
        """Keep the pool, to know who runs."""
        self._pool = pool

    def bounds(self) -> list[float]:
        """Return the upper bounds of all queues but the last, in seconds of service."""
        tokens = [FIRST_BOUND_TOKENS * BOUND_RATIO**level for level in range(LEVELS - 1)]
        return [self._prefill_seconds(count) for count in tokens]

    def quantum(self, level: int) -> float:
        """Return what a call may use of a queue, in seconds; infinite in the last one."""
        bounds = [0.0, *self.bounds(), float("inf")]
        return bounds[level + 1] - bounds[level]

    def level(self, turn: TurnView) -> int:
        """Return the queue of a live call."""
        return self._calls[turn].level

    def attained(self, program: ProgramView) -> float:
        """Return a program's scalar, in seconds."""
        known = self._programs.get(program)
        return known.scalar if known is not None else 0.0

    # --- what happens to calls

    def submitted(self, turn: TurnView, now: float) -> None:
        """Take a call's priority from what its program has attained by now."""
        program = self._programs.setdefault(turn.program, _Attained())
        level = bisect_right(self.bounds(), program.scalar)
        self._calls[turn] = _Call(program.scalar, level, turn.submitted)

    def started(self, turn: TurnView, now: float) -> None:
        """Book what the call has waited."""
        call = self._calls[turn]
        call.waited += now - call.since
        call.since = now

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Charge the whole step; a call that has used up its quantum goes down."""
        call = self._calls[turn]
        call.since = now
        call.attained += seconds
        call.served += seconds
        call.quantum_used += seconds
        if call.quantum_used >= self.quantum(call.level):
            call.level += 1
            call.quantum_used = 0.0

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Add the call to what its program has attained."""
        call = self._calls.pop(turn)
        program = self._programs[turn.program]
        program.scalar = max(program.scalar, call.inherited + call.attained)
        program.waited += call.waited
        program.served += call.served

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Forget a program."""
        self._programs.pop(program, None)

    # --- anti-starvation

    def tick(self, now: float) -> None:
        """Send calls to the top that have waited ``beta`` times as long as they were served."""
        for turn, call in self._calls.items():
            if call.level > 0 and turn.computed == 0 and self._starves_at(turn, call) <= now:
                call.level = 0
                call.quantum_used = call.waited = call.served = 0.0
                call.since = now

    def _starves_at(self, turn: TurnView, call: _Call) -> float:
        """Return when a waiting call is to go to the top queue."""
        program = self._programs[turn.program]
        due = self._beta * (program.served + call.served)
        return call.since + due - program.waited - call.waited

    # --- order, admission, preemption

    def order(self, turn: TurnView) -> tuple[Any, ...]:
        """Order by level, then by arrival."""
        return (self.level(turn), turn.submitted, turn.sequence)

    def preempts(self, waiting: TurnView, running: TurnView, now: float) -> bool:
        """Return whether the waiting call is in a higher queue."""
        return self.level(waiting) < self.level(running)

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``start``: memory alone limits."""
        return "start"

    def next_change(self, now: float) -> float | None:
        """Return when the next quantum is used up, or the next call starves."""
        running = self._pool.running if self._pool is not None else ()
        times = [
            now + self.quantum(call.level) - call.quantum_used
            for turn in running
            if (call := self._calls[turn]).level < LEVELS - 1
        ]
        times += [
            max(self._starves_at(turn, call), now)
            for turn, call in self._calls.items()
            if call.level > 0 and turn.computed == 0
        ]
        return min(times, default=None)


def plas(around: Surroundings) -> Policy:
    """Return ``plas``, with ATLAS for programs of parallel calls."""
    service = AttainedService(around.prefill_seconds)
    return Policy(
        "plas",
        service.order,
        KeepNothing(lru_score),
        admission=service,
        preempts=service.preempts,
        reorders=True,
        listeners=(service,),
    )
