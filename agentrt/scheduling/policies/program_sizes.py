"""How long programs are: turns and tokens, learned from those that ended.

With ``N`` the turns of a program, the estimates are conditioned on the turns already served::

    survival(n, k)  = P(N > n + k | N > n)

from the empirical distribution of the last ended programs, blended with a geometric one of 50
turns on average that weighs as much as six programs: what is said before anything has ended.
``growth`` is the running mean of what a context gains from one turn to the next, in tokens;
``turn_seconds`` that of a turn's service, in seconds of steps.
"""

from __future__ import annotations

from bisect import bisect_right

from agentrt.scheduling.continuum import GapHistory
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import Listener, ProgramView, TurnView

__all__ = ["ProgramSizes"]

WINDOW = 512
PRIOR_PROGRAMS = 6.0
PRIOR_STAY = 0.98
"""Chance that a program goes on after a turn, while nothing is known."""
DECAY = 0.98
PRIOR_GROWTH = 800.0
PRIOR_TURN_SECONDS = 2.0
SHORTEST_TURN = 1e-3


class ProgramSizes(Listener):
    """Learns from every program that ends and every turn that ends well."""

    def __init__(self) -> None:
        self._turns = GapHistory(WINDOW)
        self._lengths: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self.growth = PRIOR_GROWTH
        self.turn_seconds = PRIOR_TURN_SECONDS
        self.mean_turns = 1 / (1 - PRIOR_STAY)
        self.version = 0
        """Rises whenever ``survival`` may answer otherwise."""

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Learn how much the context grew."""
        if reason not in ("stop", "length"):
            return
        owner = turn.state.owner
        before = self._lengths.get(owner)
        if before is not None:
            gained = max(0, turn.length - before)
            self.growth = DECAY * self.growth + (1 - DECAY) * gained
        self._lengths[owner] = turn.length
        self._learn_service(turn.program)

    def _learn_service(self, program: ProgramView) -> None:
        taken = program.service - self._served.get(program.program_id, 0.0)
        self._served[program.program_id] = program.service
        self.turn_seconds = DECAY * self.turn_seconds + (1 - DECAY) * max(taken, SHORTEST_TURN)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Learn how many turns it had."""
        for context in program.contexts.values():
            self._lengths.pop(context.owner, None)
        self._served.pop(program.program_id, None)
        if program.turns_served:
            self._turns.add(program.turns_served)
            self.mean_turns = DECAY * self.mean_turns + (1 - DECAY) * program.turns_served
            self.version += 1

    def survival(self, served: int, more: int) -> float:
        """Return the chance that a program has more than ``more`` further turns."""
        counts = self._turns.sorted
        alive = len(counts) - bisect_right(counts, served)
        later = len(counts) - bisect_right(counts, served + more)
        return float((later + PRIOR_PROGRAMS * PRIOR_STAY**more) / (alive + PRIOR_PROGRAMS))
