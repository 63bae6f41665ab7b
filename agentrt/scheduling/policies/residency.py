"""Who is in the pool: the working sets that admission bounds, and guests.

A context is inside while a turn of it runs or its pin holds, and with it its whole program. A turn
that was outside and starts only because it has aged past the waiting bound is a guest: it borrows
pages, and while others wait its context is not pinned afterwards. So the bound costs one turn's
prefill each time, and not somebody's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentrt.scheduling.plan import FinishReason, PinOutcome
from agentrt.scheduling.policy import ContextView, Listener, PoolView, ProgramView, TurnView

__all__ = ["Residency", "Stage", "WorkingSets"]

TURNS_A_BUCKET = 8


@dataclass(slots=True)
class _Bucket:
    """Contexts inside whose programs have served about as many turns."""

    count: int = 0
    tokens: float = 0.0
    squares: float = 0.0

    def add(self, tokens: int, sign: int) -> None:
        self.count += sign
        self.tokens += sign * tokens
        self.squares += sign * float(tokens) * tokens


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a program is, roughly: turns served, or turns left where that is told."""

    told: bool
    bucket: int

    @classmethod
    def of(cls, served: int, left: int | None) -> Stage:
        """Return the stage of a program that says how many turns are left, or does not."""
        return cls(left is not None, (served if left is None else left) // TURNS_A_BUCKET)

    @property
    def turns(self) -> int:
        """The middle of the stage, in turns."""
        return self.bucket * TURNS_A_BUCKET + TURNS_A_BUCKET // 2


class WorkingSets:
    """Sizes of the contexts inside, summed by the stages of their programs."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, Stage]] = {}
        self._buckets: dict[Stage, _Bucket] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, owner: str) -> bool:
        return owner in self._entries

    @property
    def mean_tokens(self) -> float:
        """What a context holds on average; 0 if there is none."""
        return self._tokens / len(self._entries) if self._entries else 0.0

    def put(self, owner: str, tokens: int, stage: Stage) -> None:
        """Note that a context holds ``tokens``, and how far its program is."""
        self.drop(owner)
        self._entries[owner] = (tokens, stage)
        self._tokens += tokens
        self._buckets.setdefault(stage, _Bucket()).add(tokens, 1)

    def drop(self, owner: str) -> None:
        """Note that a context holds nothing any more."""
        entry = self._entries.pop(owner, None)
        if entry is None:
            return
        tokens, stage = entry
        self._tokens -= tokens
        self._buckets[stage].add(tokens, -1)
        if self._buckets[stage].count == 0:
            del self._buckets[stage]

    def groups(self) -> Iterator[tuple[Stage, int, float, float]]:
        """Yield stages with their contexts, the tokens of these and their squares."""
        for stage, held in self._buckets.items():
            yield stage, held.count, held.tokens, held.squares


class Residency(Listener):
    """Keeps track of what is inside, and of guests; without ``guests`` there are none.

    With ``heed_hints`` a program's stage is what it tells of the turns that it has left.
    """

    def __init__(self, *, guests: bool = True, heed_hints: bool = True) -> None:
        self._heeds_hints = heed_hints
        self._lengths: dict[str, int] = {}
        self.sets = WorkingSets()
        self._takes_guests = guests
        self._guests: set[TurnView] = set()
        self._returning: str | None = None
        self._pool: PoolView | None = None

    def is_guest(self, turn: TurnView) -> bool:
        """Whether a turn that runs, or ends just now, started only because of its age."""
        return turn in self._guests

    def is_inside(self, turn: TurnView) -> bool:
        """Whether a turn's KV is pinned, or another context of its program is inside.

        What a program is to do beside or below a context that waits for it must not wait outside.
        """
        contexts = turn.program.contexts.values()
        return turn.pinned or any(context.owner in self.sets for context in contexts)

    @property
    def pool(self) -> PoolView | None:
        """The pool, once a scheduler was made with the policy."""
        return self._pool

    def opened(self, pool: PoolView) -> None:
        """Keep the pool."""
        self._pool = pool

    def others_wait(self) -> bool:
        """Whether turns wait for pages."""
        return self._pool is not None and self._pool.waiting > 0

    def started(self, turn: TurnView, now: float) -> None:
        """Note what the turn may come to hold."""
        owner = turn.state.owner
        inside = self._returning == owner or self.is_inside(turn)
        self._returning = None
        if self._takes_guests and not inside and self._aged(turn, now):
            self._guests.add(turn)
        self.sets.put(owner, turn.prompt_tokens + turn.max_output, self.stage(turn))

    def stage(self, turn: TurnView) -> Stage:
        """Return how far a turn's program is, and keep what it tells."""
        self.hear(turn)
        return self._stage(turn.program)

    def hear(self, turn: TurnView) -> None:
        """Keep what a turn tells of its program's length."""
        left = turn.hints.remaining_turns
        if self._heeds_hints and left is not None:
            self._lengths[turn.program_id] = turn.program_turns + max(0, left) + 1

    def told_turns(self, program: ProgramView) -> int | None:
        """Return how many turns a program has in all, as it told; None if it did not."""
        return self._lengths.get(program.program_id)

    def _stage(self, program: ProgramView) -> Stage:
        whole = self.told_turns(program)
        left = None if whole is None else max(0, whole - 1 - program.turns_served)
        return Stage.of(program.turns_served, left)

    def _aged(self, turn: TurnView, now: float) -> bool:
        return self._pool is not None and now >= turn.submitted + self._pool.max_wait

    def preempted(self, turn: TurnView, now: float) -> None:
        """Forget what the turn held."""
        self._guests.discard(turn)
        self.sets.drop(turn.state.owner)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Note that the context holds nothing, unless it is pinned next."""
        self.sets.drop(turn.state.owner)
        if reason not in ("stop", "length"):
            self._guests.discard(turn)

    def leave(self, turn: TurnView) -> None:
        """Say that what becomes of a turn's KV has been decided."""
        self._guests.discard(turn)

    def pinned(self, context: ContextView, now: float) -> None:
        """Note what the context holds while it is away."""
        self.sets.put(context.owner, context.length, self._stage(context.program))

    def unpinned(self, context: ContextView, outcome: PinOutcome, now: float) -> None:
        """Note that it holds nothing now; a pin is handed off just before its next turn starts."""
        self.sets.drop(context.owner)
        self._returning = context.owner if outcome == "handed_off" else None

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Forget a program."""
        self._lengths.pop(program.program_id, None)
        self._guests = {turn for turn in self._guests if turn.program is not program}
        for context in program.contexts.values():
            self.sets.drop(context.owner)
