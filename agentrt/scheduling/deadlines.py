"""Deadlines: how long a program still takes, when it must go on, what pace it needs.

Remaining time is counted as if the program had the engine to itself ("alone"): turns left, as
hinted or as programs of its kind turned out, times what a turn of its kind takes. From that follow

    latest start  = deadline - remaining        does not change while a turn waits: a rank
    pace needed   = remaining work / (deadline - now - remaining gaps)

The pace needed is JITServe's required bandwidth (arXiv 2504.20068) and one program's term of SAGA's
Agent Fair Share (arXiv 2605.00528), with tool time taken out, which no engine can shorten: 1 means
that the program must run as if alone, more that its deadline cannot be met.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import Listener, PoolView, PrefillSeconds, ProgramView, TurnView

__all__ = ["DeadlineBook", "Deadlines", "StepPace"]

KIND_PROGRAMS = 500
"""Ended programs of a kind that are remembered, for how many turns they had."""

DECAY = 0.98
"""Of running means, a turn."""

STEP_DECAY = 0.9999
"""Of what steps took, a step."""

EXPECTED_SHARE = 1 / 1.5
"""Cold start: a deadline is 1.5 times the time that its program is expected to take (SAGA)."""


class StepPace(Listener):
    """What a step takes by how many turns run: a line fitted to the steps seen, newer ones more.

    It tells how much slower a turn advances beside others than alone.
    """

    def __init__(self) -> None:
        self._pool: PoolView | None = None
        self._seen = -math.inf
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def opened(self, pool: PoolView) -> None:
        """Remember where to see what runs."""
        self._pool = pool

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Learn from what a step took a turn that put out tokens, once a step."""
        if now == self._seen or self._pool is None or prefilled or not decoded:
            return
        self._seen = now
        self.observe(len(self._pool.running), seconds / decoded, decoded)

    def observe(self, running: int, seconds: float, steps: int = 1) -> None:
        """Note that so many steps with so many turns took so long each."""
        kept = STEP_DECAY**steps
        self._n, self._x, self._y = kept * self._n, kept * self._x, kept * self._y
        self._xx, self._xy = kept * self._xx, kept * self._xy
        self._n += steps
        self._x += steps * running
        self._y += steps * seconds
        self._xx += steps * running * running
        self._xy += steps * running * seconds

    def step_seconds(self, running: int) -> float:
        """Return what a step with so many turns is expected to take; 0 before the first one."""
        if self._n == 0:
            return 0.0
        spread = self._n * self._xx - self._x**2
        mean = self._y / self._n
        if spread <= 1e-9 * self._n * self._xx:
            return mean
        slope = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        # A line through noise may cross zero: no step is taken to be faster than half the mean.
        return max(mean + slope * (running - self._x / self._n), mean / 20)

    def pace(self, running: int) -> float:
        """Return how fast a turn advances beside others, at most 1: as if alone."""
        beside = self.step_seconds(running)
        return min(1.0, self.step_seconds(1) / beside) if beside > 0 else 1.0


@dataclass(slots=True)
class _Kind:
    """What programs of one kind are like: means of a turn, and how many turns they had."""

    fresh: float = 0.0
    output: float = 0.0
    gap: float = 0.0
    seen: float = 0.0
    gaps: float = 0.0
    counts: list[int] = field(default_factory=list)
    order: deque[int] = field(default_factory=deque)

    def turn(self, fresh: int, output: int) -> None:
        self.seen = self.seen * DECAY + 1
        self.fresh += (fresh - self.fresh) / self.seen
        self.output += (output - self.output) / self.seen

    def away(self, gap: float) -> None:
        self.gaps = self.gaps * DECAY + 1
        self.gap += (gap - self.gap) / self.gaps

    def ended(self, turns: int) -> None:
        if len(self.order) == KIND_PROGRAMS:
            self.counts.remove(self.order.popleft())
        self.order.append(turns)
        insort(self.counts, turns)

    def turns_left(self, served: int) -> float | None:
        """Mean turns left of those that had more than ``served``; None if nothing is known."""
        if not self.counts:
            return None
        longer = self.counts[bisect_right(self.counts, served) :]
        return sum(longer) / len(longer) - served if longer else 1.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """A turn's standing: seconds. ``work`` and ``gaps`` remain of what the deadline is about.

    ``turn`` is the part of ``work`` that is left of the turn itself.
    """

    deadline: float
    work: float
    gaps: float
    turn: float

    def hopeless(self, now: float) -> bool:
        """Whether not even this turn alone is done in time, whatever was guessed of later ones."""
        return now + self.turn > self.deadline

    @property
    def latest_start(self) -> float:
        """When it must go on to be in time, if it then runs as if alone."""
        return self.deadline - self.work - self.gaps

    def pace(self, now: float) -> float:
        """Return the pace needed: 1 is as if alone; infinity: it is too late."""
        left = self.deadline - now - self.gaps
        return self.work / left if left > 0 else math.inf


class DeadlineBook(StepPace):
    """Knows the deadlines of turns and programs, and estimates what remains of them.

    Kinds of programs are told apart by the hinted agent, else by tenant.
    """

    def __init__(self, prefill_seconds: PrefillSeconds) -> None:
        super().__init__()
        self._prefill_seconds = prefill_seconds
        self._kinds: dict[str, _Kind] = {}
        self._fresh: dict[str, int] = {}
        self._of: dict[str, str] = {}

    def submitted(self, turn: TurnView, now: float) -> None:
        """Learn how long the context was away."""
        kind = self._kind(turn)
        self._of[turn.program_id] = self._name(turn)
        if turn.state.last_end is not None and turn.state.live_turns == 1:
            kind.away(now - turn.state.last_end)

    def started(self, turn: TurnView, now: float) -> None:
        """Note what is to be computed."""
        self._fresh[turn.turn_id] = turn.length - turn.computed

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Learn what a turn took."""
        fresh = self._fresh.pop(turn.turn_id, None)
        if fresh is not None and reason in ("stop", "length"):
            self._kind(turn).turn(fresh, turn.output)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Learn how many turns a program had."""
        name = self._of.pop(program.program_id, None)
        if name is not None and program.turns_served:
            self._kinds[name].ended(program.turns_served)

    def standing(self, turn: TurnView) -> Deadlines | None:
        """Return the more pressing of a turn's and its program's deadline; None: there is none."""
        own, program = turn.hints.turn_deadline, turn.hints.program_deadline
        found = []
        if own is not None:
            seconds = self._turn_seconds(turn)
            found.append(Deadlines(own, seconds, 0.0, seconds))
        if program is not None:
            found.append(self._of_program(turn, program))
        return min(found, key=lambda one: one.latest_start, default=None)

    def _name(self, turn: TurnView) -> str:
        return turn.hints.agent or turn.tenant

    def _kind(self, turn: TurnView) -> _Kind:
        return self._kinds.setdefault(self._name(turn), _Kind())

    def _turn_seconds(self, turn: TurnView) -> float:
        """Return what is left of a turn alone."""
        kind = self._kind(turn)
        expected = turn.hints.output_tokens
        if expected is None:
            expected = round(kind.output) if kind.seen else turn.max_output
        left = max(1, min(turn.max_output, expected) - turn.output)
        fresh = kind.fresh if turn.output == 0 else 0.0
        return self._prefill_seconds(round(fresh)) + left * self.step_seconds(1)

    def _of_program(self, turn: TurnView, deadline: float) -> Deadlines:
        kind, served = self._kind(turn), turn.program_turns
        hinted = turn.hints.remaining_turns
        left = hinted + 1.0 if hinted is not None else kind.turns_left(served)
        each = self._prefill_seconds(round(kind.fresh)) + kind.output * self.step_seconds(1)
        if left is None or not kind.seen:
            # Nothing has ended yet: the deadline itself tells how long the program is.
            whole = (deadline - turn.program_arrival) * EXPECTED_SHARE
            round_trip = each + kind.gap
            left = max(1.0, whole / round_trip - served) if round_trip > 0 else 1.0
        seconds, later = self._turn_seconds(turn), max(0.0, left - 1)
        return Deadlines(deadline, later * each + seconds, later * kind.gap, seconds)
