"""What a policy is: an order, a retention, and a rule for breaking pins.

A policy sees turns and programs through read-only views and never touches pages itself. A new one
is one file with a factory, registered in :mod:`agentrt.scheduling.registry` or through the
entry-point group ``agentrt.policies``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from agentrt.scheduling.kv import CachedRun

__all__ = [
    "KeepNothing",
    "Order",
    "Policy",
    "PrefillSeconds",
    "Retention",
    "TurnView",
    "by_arrival",
    "by_program",
    "lru_score",
    "program_score",
]

PrefillSeconds: TypeAlias = Callable[[int], float]
"""Seconds it takes to prefill so many tokens."""


class TurnView(Protocol):
    """What a policy may know of a turn."""

    @property
    def program_id(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def tool(self) -> str | None:
        """The tool that runs after this turn, if it is known."""
        ...

    @property
    def submitted(self) -> float: ...
    @property
    def sequence(self) -> int:
        """Rises by one with every submitted turn: breaks ties."""
        ...

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        ...

    @property
    def preemptions(self) -> int: ...
    @property
    def pinned(self) -> bool:
        """Whether the context's KV is held by a live pin."""
        ...

    @property
    def program_arrival(self) -> float: ...
    @property
    def program_turns(self) -> int:
        """Turns of the program that have ended."""
        ...


class Order(Protocol):
    """Ranks waiting turns: the smallest key goes first, and no other goes before it."""

    def __call__(self, turn: TurnView) -> tuple[Any, ...]: ...


class Retention(Protocol):
    """Decides how long KV stays, and learns from what it sees. Times are seconds."""

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return the pin's time to live, counted from ``now``; 0 means no pin."""
        ...

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn: a context came back ``gap`` seconds after its turn ended with ``tool``."""
        ...

    def admitted(self, queue_seconds: float, evicted: bool) -> None:
        """Learn: a returning turn waited so long; ``evicted`` if its earlier KV was gone."""
        ...

    def program_ended(self, turns: int) -> None:
        """Learn: a program ended after so many turns."""
        ...

    def score(self, run: CachedRun) -> Any:
        """Rank unpinned cached runs for eviction: the lowest goes first."""
        ...


PinBreak: TypeAlias = Literal["head", "last_resort"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named composition.

    ``pin_break`` says for whom live pins are broken: ``last_resort`` only for a turn that has aged
    past the waiting bound, or when nothing else can run; ``head`` for any turn at the queue's head.
    """

    name: str
    order: Order
    retention: Retention
    pin_break: PinBreak = "last_resort"


def by_arrival(turn: TurnView) -> tuple[Any, ...]:
    """Order by the turn's own arrival: what a server without program knowledge does."""
    return (turn.preemptions == 0, turn.submitted, turn.sequence)


def by_program(turn: TurnView) -> tuple[Any, ...]:
    """Order preempted turns first, then by the program's arrival, then by the turn's own."""
    return (turn.preemptions == 0, turn.program_arrival, turn.submitted, turn.sequence)


def lru_score(run: CachedRun) -> Any:
    """Evict what was used longest ago, whoever it belongs to."""
    return run.last_used


def program_score(run: CachedRun) -> Any:
    """Evict what no living context needs (ended, superseded), then the least recently used."""
    return (run.owned, run.last_used)


class KeepNothing:
    """Retention without pins: KV stays as long as eviction by ``score`` lets it."""

    def __init__(self, score: Callable[[CachedRun], Any]) -> None:
        self._score = score

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return 0."""
        return 0.0

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn nothing."""

    def admitted(self, queue_seconds: float, evicted: bool) -> None:
        """Learn nothing."""

    def program_ended(self, turns: int) -> None:
        """Learn nothing."""

    def score(self, run: CachedRun) -> Any:
        """Rank as the score function given at construction does."""
        return self._score(run)
