"""SLO: just in time by deadline; what is late or has no deadline gives way.

Sources: JITServe (arXiv 2504.20068): required bandwidth ``remaining / (deadline - now)``, serve
what is needed and no more; SAGA's Agent Fair Share (arXiv 2605.00528), the same as urgency.

Order: turns that can still be in time, by latest start (least laxity: it does not change while a
turn waits, so the queue stays a heap); then those without a deadline, by program; then those that
were too late when they came, so that they do not drag others down. Started prefills share a step in
the same order. Admission: one more turn slows every other, so a turn that is late or has no
deadline starts only if those that run still get the pace that they need. A turn that must start and
finds no room takes the place of the one with the most slack, each at most once. Pins: 30 s.

Left open by the papers, chosen here: what remains (``deadlines.py``); late is what could not be in
time even if this turn were its program's last. Holding back turns that have slack, as JITServe does
for single requests, lost more deadlines than it saved in simulation: a pause costs its program all
of its length, gives each other turn a few percent, and what remains of an agent's run is a guess.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentrt.scheduling.deadlines import DeadlineBook
from agentrt.scheduling.fixed_ttl import fixed_ttl
from agentrt.scheduling.policy import Admission, AdmitAll, Policy, PoolView, TurnView, Verdict
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["PaceAdmission", "by_deadline", "slo"]

RECHECK_SECONDS = 0.25
"""How soon a turn that was held back is looked at again: what it needs grows as it waits."""

DISPLACE_SECONDS = 2.0
"""A turn gives its place only to one that must start so much sooner."""


class DeadlineOrder:
    """The order; ``rank`` is 0 in time, 1 without a deadline, 2 too late."""

    def __init__(self, book: DeadlineBook) -> None:
        self._book = book

    def __call__(self, turn: TurnView) -> tuple[Any, ...]:
        """Rank by class, then by latest start."""
        standing = self._book.standing(turn)
        if standing is None:
            return (1, turn.program_arrival, turn.submitted, turn.sequence)
        late = standing.hopeless(turn.submitted)
        return (2 if late else 0, standing.latest_start, turn.submitted, turn.sequence)

    def preempts(self, waiting: TurnView, running: TurnView, now: float) -> bool:
        """Whether a waiting turn must start so much sooner that a running one should give way."""
        mine = self._book.standing(waiting)
        if mine is None or mine.hopeless(now):
            return False
        other = self._book.standing(running)
        if other is None or other.hopeless(now):
            return True
        return mine.latest_start + DISPLACE_SECONDS < other.latest_start


def by_deadline(book: DeadlineBook) -> DeadlineOrder:
    """Return the order by latest start."""
    return DeadlineOrder(book)


class PaceAdmission:
    """Holds back turns that are late or have no deadline while others need the pace.

    Asks ``inner`` about the rest.
    """

    def __init__(self, book: DeadlineBook, inner: Admission | None = None) -> None:
        self._book = book
        self._inner = inner or AdmitAll()
        self._held: float | None = None

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``wait`` for a turn that would slow others down too much."""
        self._held = None
        if not self._fits(turn, pool, now):
            self._held = now
            return "wait"
        return self._inner.verdict(turn, pool, now)

    def _fits(self, turn: TurnView, pool: PoolView, now: float) -> bool:
        running = pool.running
        if not running or self._needed(turn, now) > 0:
            return True
        need = max(self._needed(other, now) for other in running)
        return need <= self._book.pace(len(running) + 1)

    def _needed(self, turn: TurnView, now: float) -> float:
        """Return the pace that a turn needs; 0 where no pace helps, or it has no deadline."""
        standing = self._book.standing(turn)
        if standing is None or standing.hopeless(now):
            return 0.0
        return min(1.0, standing.pace(now))

    def next_change(self, now: float) -> float | None:
        """Return when a turn that was held back is looked at again."""
        later = None if self._held is None else max(now, self._held) + RECHECK_SECONDS
        inner = self._inner.next_change(now)
        return min((one for one in (later, inner) if one is not None), default=None)


def slo(around: Surroundings) -> Policy:
    """Return the policy by deadlines."""
    book = DeadlineBook(around.prefill_seconds)
    order = by_deadline(book)
    pins = fixed_ttl("30", around)
    return replace(
        pins,
        name="slo",
        order=order,
        admission=PaceAdmission(book),
        prefill_order=order,
        preempts=order.preempts,
        listeners=(book,),
    )
