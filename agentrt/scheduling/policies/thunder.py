"""ThunderAgent: programs are paused and resumed as wholes, by what KV they demand.

Source: arXiv 2602.13692 and its router (MIT). A program is REASONING while it has a live turn, else
ACTING, and PAUSED when its turns are held back. Every 5 s, in tokens::

    used = reasoning + w * acting - shared + 100 * active programs        w = 1
    shared = tokens of running turns - tokens of pages that they hold

While ``used`` exceeds the pool, ACTING programs are paused, smallest first; then REASONING ones are
marked, smallest first, and paused when their turn ends. While there is room, programs are resumed
that fit: those with a turn waiting and one behind them, then new ones, then ACTING ones, each by
tokens ascending. A program paused for 1,800 s is resumed whatever it takes.

Left open by the paper, chosen here: order by arrival and LRU, as the engine behind the router does;
a program is measured by its contexts' latest turns, and a live turn by its length (the router
estimates a token as five characters); a new program begins at once if it fits and none is paused.
The check is made when turns are to be admitted, 5 s or more after the last one. A turn that has
waited ``max_wait`` starts all the same, which resumes its program: where ``max_wait`` is shorter,
it is the forced resume.

Known defect: the smallest are paused first and resumed in ascending order, so a large program waits
for as long as smaller ones keep coming; the independent runs saw a request starve for 1,800 s. A
program whose client has gone counts as ACTING until it is released.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import (
    KeepNothing,
    Listener,
    Policy,
    PoolView,
    ProgramView,
    TurnView,
    Verdict,
    by_arrival,
    lru_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["ProgramPauses", "thunder"]

PERIOD = 5.0
FORCED_RESUME = 1800.0
ACTING_WEIGHT = 1.0
PROGRAM_TOKENS = 100


@dataclass(slots=True)
class _Program:
    """Its live turns; ``marked``: to be paused when its turn ends."""

    live: dict[TurnView, None]
    marked: bool = False


class ProgramPauses(Listener):
    """Which programs are paused; also the admission that holds their turns back."""

    def __init__(self) -> None:
        self._programs: dict[ProgramView, _Program] = {}
        self._since: dict[ProgramView, float] = {}
        self._checked = float("-inf")

    def paused(self) -> list[ProgramView]:
        """Return the paused programs."""
        return list(self._since)

    # --- what happens

    def submitted(self, turn: TurnView, now: float) -> None:
        """Note a turn; a program that is new waits to be resumed."""
        known = self._programs.get(turn.program)
        if known is None:
            known = self._programs[turn.program] = _Program({})
            self._since[turn.program] = now
        known.live[turn] = None

    def started(self, turn: TurnView, now: float) -> None:
        """A turn runs, for whatever reason: its program is not paused."""
        self._since.pop(turn.program, None)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Pause a program that was marked, once its last live turn ends."""
        known = self._programs[turn.program]
        known.live.pop(turn, None)
        if known.marked and not known.live:
            known.marked, self._since[turn.program] = False, now

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Forget a program."""
        self._programs.pop(program, None)
        self._since.pop(program, None)

    # --- admission

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``skip`` for turns of paused programs."""
        if now - self._checked >= PERIOD:
            self._checked = now
            self._check(pool, now)
        if turn.program in self._since and self._begins(turn.program, pool):
            del self._since[turn.program]
        return "skip" if turn.program in self._since else "start"

    def next_change(self, now: float) -> float | None:
        """Return when the next check is due, if programs are paused."""
        return max(self._checked + PERIOD, now) if self._since else None

    def _begins(self, program: ProgramView, pool: PoolView) -> bool:
        """Whether a new program may begin between checks: it fits, and no other is paused."""
        if program.turns_served or len(self._since) > 1:
            return False
        return self.used(pool) + self._demand(program) <= pool.capacity

    # --- the check

    def tokens(self, program: ProgramView) -> int:
        """Return what a program holds or wants: its contexts, those of live turns by the turn."""
        live = self._programs[program].live
        busy = {turn.context for turn in live}
        idle = sum(c.length for name, c in program.contexts.items() if name not in busy)
        return idle + sum(turn.length for turn in live)

    def _demand(self, program: ProgramView) -> float:
        weight = 1.0 if self._programs[program].live else ACTING_WEIGHT
        return weight * self.tokens(program) + PROGRAM_TOKENS

    def used(self, pool: PoolView) -> float:
        """Return the demand of all programs that are not paused, in tokens."""
        active = [view for view in self._programs if view not in self._since]
        running = sum(turn.length for turn in pool.running)
        held = pool.capacity - pool.available - pool.pinned
        return sum(map(self._demand, active)) - max(running - held, 0)

    def _check(self, pool: PoolView, now: float) -> None:
        room = pool.capacity - self.used(pool)
        if room < 0:
            self._pause(-room, now)
        else:
            self._resume(room)
        for program in self.paused():
            if now - self._since[program] >= FORCED_RESUME:
                del self._since[program]

    def _pause(self, excess: float, now: float) -> None:
        active = [view for view in self._programs if view not in self._since]
        excess -= sum(self._demand(view) for view in active if self._programs[view].marked)
        acting = [view for view in active if not self._programs[view].live]
        reasoning = [
            view for view in active if (known := self._programs[view]).live and not known.marked
        ]
        for program in [*self._ascending(acting), *self._ascending(reasoning)]:
            if excess <= 0:
                return
            excess -= self._demand(program)
            known = self._programs[program]
            if known.live:
                known.marked = True
            else:
                self._since[program] = now

    def _resume(self, room: float) -> None:
        for known in self._programs.values():
            known.marked = False
        paused = self.paused()
        waiting = [view for view in paused if self._programs[view].live]
        groups = (
            [view for view in waiting if view.turns_served],
            [view for view in waiting if not view.turns_served],
            [view for view in paused if not self._programs[view].live],
        )
        for program in [view for group in groups for view in self._ascending(group)]:
            if (demand := self._demand(program)) <= room:
                room -= demand
                del self._since[program]

    def _ascending(self, programs: Iterable[ProgramView]) -> list[ProgramView]:
        return sorted(programs, key=lambda view: (self.tokens(view), view.arrival))


def thunder(around: Surroundings) -> Policy:
    """Return ``thunder``."""
    pauses = ProgramPauses()
    return Policy(
        "thunder", by_arrival, KeepNothing(lru_score), admission=pauses, listeners=(pauses,)
    )
