"""A program under way in a simulation: its prompts, what comes next, what an ideal cache holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from agentrt.bench.workload import Program, Turn
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import Sample, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.tokens import VirtualTokens
from agentrt.simulation.cost import CostModel
from agentrt.simulation.future import Future

__all__ = ["Foretelling", "IdealCache", "ProgramRun", "sampled"]


@dataclass(slots=True)
class ProgramRun:
    """One program under way: the turn it is at, and what each of its contexts holds.

    Where turns run side by side there is one for each of them (:meth:`at`), and these share what
    is the program's: ``held``, and ``left`` with the time from which a turn's end, and the gap
    after it, hold nothing up any more.
    """

    program: Program
    arrival: float
    index: int = 0
    ideal: int = 0
    held: dict[str, VirtualTokens] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    branches: bool = field(init=False)

    def __post_init__(self) -> None:
        self.branches = self.program.branches  # looks at every turn: not to be asked every time

    @property
    def turn(self) -> Turn:
        return self.program.turns[self.index]

    @property
    def is_last(self) -> bool:
        """Whether nothing is left of the program once this turn has ended."""
        return self.turns_left == 0

    def at(self, index: int) -> ProgramRun:
        """Return the same program at another turn."""
        return replace(self, index=index, ideal=0)

    def first_turns(self) -> list[ProgramRun]:
        """Return the program at each turn that waits for none."""
        if not self.branches:
            return [self]
        every = range(len(self.program.turns))
        return [self.at(index) for index in every if not self.program.predecessors(index)]

    def next_turns(self, back: float) -> list[tuple[float, ProgramRun]]:
        """Return the turns that this one's end lets start, each with its time.

        ``back`` is when the gap after it is over.
        """
        if not self.branches:
            self.index += 1
            return [(back, self)]
        self.left[self.index] = back
        ready: list[tuple[float, ProgramRun]] = []
        for index in range(self.index + 1, len(self.program.turns)):
            before = self.program.predecessors(index)
            if self.index in before and all(place in self.left for place in before):
                ready.append((max(self.left[place] for place in before), self.at(index)))
        return ready

    @property
    def turn_id(self) -> str:
        return f"{self.program.program}/{self.index}"

    def prompt(self) -> VirtualTokens:
        """Return the current turn's prompt and remember it as its context's state."""
        turn, tag = self.turn, (self.program.program, self.index)
        before = self.held.get(turn.context)
        if turn.blocks:
            source = VirtualTokens(_segments(turn), turn.prompt_tokens, tag)
        elif before is None:
            source = VirtualTokens.first(turn.prompt_tokens, tag)
        else:
            source = before.follow(turn.reused_tokens, turn.prompt_tokens, tag)
        self.held[turn.context] = source
        return source

    @property
    def hints(self) -> TurnHints:
        """What a client would say ahead: the program's deadline and turns left, if it does."""
        told = self.program
        if told.deadline is None and not told.tells_turns:
            return NO_HINTS
        due = None if told.deadline is None else self.arrival + told.deadline
        return TurnHints(
            program_deadline=due,
            remaining_turns=self.turns_left if told.tells_turns else None,
        )

    @property
    def turns_left(self) -> int:
        """How many turns follow this one."""
        if not self.branches:
            return len(self.program.turns) - 1 - self.index
        return len(self.program.turns) - len(self.left) - (self.index not in self.left)

    def request(self) -> TurnRequest:
        """Return the current turn as it is handed to a scheduler."""
        turn = self.turn
        return TurnRequest(
            turn_id=self.turn_id,
            program_id=self.program.program,
            tokens=self.prompt(),
            max_output=turn.output_tokens,
            context=turn.context,
            tenant=self.program.tenant,
            next_tool=turn.next_tool,
            last=self.is_last,
            hints=self.hints,
            program_arrival=self.arrival,
        )


def _segments(turn: Turn) -> list[tuple[int, Hashable]]:
    """Name a prompt's content by its blocks; the last one may be cut off by the prompt's end."""
    size = turn.block_tokens
    used = turn.blocks[: -(-turn.prompt_tokens // size)]
    return [
        (min((at + 1) * size, turn.prompt_tokens), ("block", name)) for at, name in enumerate(used)
    ]


class IdealCache:
    """What a cache that never forgets would still have to prefill."""

    def __init__(self) -> None:
        self._blocks: set[int] = set()

    def prefill(self, turn: Turn) -> int:
        """Return the tokens of ``turn`` that it does not hold; at least the last one."""
        if not turn.blocks:
            return max(1, turn.prompt_tokens - turn.reused_tokens)
        known = sum(1 for _ in itertools.takewhile(self._blocks.__contains__, turn.blocks))
        self._blocks.update(turn.blocks)
        return max(1, turn.prompt_tokens - known * turn.block_tokens)


class Foretelling:
    """Keeps a :class:`Future` true while programs are under way."""

    def __init__(self, future: Future, cost: CostModel) -> None:
        self._future = future
        self._cost = cost

    def _alone(self, turn: Turn) -> float:
        new = max(1, turn.prompt_tokens - turn.reused_tokens)
        return self._cost.turn_seconds(new, turn.prompt_tokens, turn.output_tokens)

    def arrives(self, run: ProgramRun, time: float) -> None:
        """The current turn was handed in at ``time``."""
        self._future.set_return(run.program.program, run.turn.context, time)
        self._note_remaining(run)

    def leaves(self, run: ProgramRun, back: float) -> None:
        """The turn before the current one ended; the current one arrives at ``back``.

        Other contexts are back no sooner than if all turns until then ran alone.
        """
        time, seen = back, set[str]()
        for turn in run.program.turns[run.index :]:
            if turn.context not in seen:
                seen.add(turn.context)
                self._future.set_return(run.program.program, turn.context, time)
            time += self._alone(turn) + (turn.gap or 0.0)
        for context in run.held.keys() - seen:
            self._future.set_return(run.program.program, context, math.inf)
        self._note_remaining(run)

    def branches(self, run: ProgramRun, now: float) -> None:
        """A turn of a program whose turns run side by side has ended at ``now``.

        A turn is back once those before it have ended, each as if it ran alone from now on.
        """
        ends, returns = dict(run.left), dict.fromkeys(run.held, math.inf)
        for index, turn in enumerate(run.program.turns):
            if index in run.left:
                continue
            start = max((ends[place] for place in run.program.predecessors(index)), default=now)
            start = max(start, now)
            returns[turn.context] = min(returns.get(turn.context, math.inf), start)
            ends[index] = start + self._alone(turn) + (turn.gap or 0.0)
        for context, time in returns.items():
            self._future.set_return(run.program.program, context, time)
        self._future.set_remaining(run.program.program, max(ends.values(), default=now) - now)

    def _note_remaining(self, run: ProgramRun) -> None:
        if run.branches:
            return
        left = run.program.turns[run.index :]
        seconds = sum(self._alone(turn) + (turn.gap or 0.0) for turn in left)
        self._future.set_remaining(run.program.program, seconds)

    def ends(self, run: ProgramRun) -> None:
        """The program has ended."""
        self._future.forget(run.program.program)


def sampled(plan: StepPlan, repeat: int) -> StepResult:
    """Stand for the device: every sampled slice gets one token a repetition, whatever it is."""
    sample = Sample(tokens=range(repeat))
    return StepResult({piece.turn_id: sample for piece in plan.slices if piece.sample})
