"""What a policy is: an order, a retention, an admission, and a rule for breaking pins.

A policy sees turns and programs through read-only views (``views.py``) and never touches pages
itself. A new one is one file with a factory, registered in :mod:`agentrt.scheduling.registry` or
through the entry-point group ``agentrt.policies``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from agentrt.scheduling.graph_declared import Edge, Step
from agentrt.scheduling.kv import CachedRun
from agentrt.scheduling.plan import FinishReason, PinOutcome, ToolEvent
from agentrt.scheduling.views import ContextView, PoolView, ProgramView, TurnView

__all__ = [
    "Admission",
    "AdmitAll",
    "ContextView",
    "Groups",
    "KeepNothing",
    "KeepOnHost",
    "Listener",
    "Order",
    "PinBreak",
    "Policy",
    "PoolView",
    "Preempts",
    "Prefetch",
    "PrefillSeconds",
    "ProgramView",
    "Retention",
    "Tiering",
    "TurnView",
    "Verdict",
    "by_arrival",
    "by_program",
    "lru_score",
    "program_score",
]

PrefillSeconds: TypeAlias = Callable[[int], float]
"""Seconds it takes to prefill so many tokens."""


class Order(Protocol):
    """Ranks waiting turns: the smallest key goes first, and no other goes before it."""

    def __call__(self, turn: TurnView) -> tuple[Any, ...]: ...


class Groups(Protocol):
    """Puts waiting turns into groups, such as tenants: the order ranks turns of one group only.

    The first turn of the group with the smallest key is next. Keys are asked for anew before every
    start; a turn's group never changes while it waits. Finding the group costs their number.
    """

    def group(self, turn: TurnView) -> Hashable: ...
    def key(self, group: Hashable) -> Any: ...


class Retention(Protocol):
    """Decides how long KV stays, and learns from what it sees. Times are seconds.

    ``rescore`` says that scores change with time or events, so that they must be asked for anew at
    each eviction; without it a run is scored when it becomes evictable.
    """

    @property
    def rescore(self) -> bool: ...

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return the pin's time to live, counted from ``now``; 0 means no pin."""
        ...

    def pin_expiring(self, context: ContextView, waited: float, now: float) -> float:
        """A pin's time is over after ``waited`` seconds: return seconds to go on, 0 to let go."""
        ...

    def tool_event(self, context: ContextView, event: ToolEvent, now: float) -> float | None:
        """A tool of a context made progress: return its pin's new time to live from ``now``.

        None leaves the pin as it is; 0 ends it.
        """
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


Verdict: TypeAlias = Literal["start", "wait", "skip", "hold"]


class Admission(Protocol):
    """Says whether a turn that is next in order may start, beyond whether its pages fit.

    ``wait`` blocks the queue behind it, ``skip`` lets the next in order try. A turn aged past the
    waiting bound is not asked about, and something always runs: where nothing does and everything
    was held back, the first in order starts. ``hold`` is a ``skip`` that this does not overrule: it
    must end by itself, by time (``next_change``) or with something else that is under way.
    """

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict: ...
    def next_change(self, now: float) -> float | None:
        """Return when the passing of time alone may change a verdict, if ever."""
        ...


class AdmitAll:
    """Admission that leaves it to the pages."""

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``start``."""
        return "start"

    def next_change(self, now: float) -> float | None:
        """Return None."""
        return None


class Listener:
    """Is told what happens; every method does nothing unless it is overridden. Times are seconds.

    What it learns must not be needed for correctness: hints lie and events get lost.
    """

    def opened(self, pool: PoolView) -> None:
        """A scheduler was made with the policy; ``pool`` shows its pages from now on."""

    def tick(self, now: float) -> None:
        """A step is about to be planned."""

    def submitted(self, turn: TurnView, now: float) -> None:
        """A turn was handed in."""

    def started(self, turn: TurnView, now: float) -> None:
        """A turn left the queue, for the first time or after a preemption."""

    def preempted(self, turn: TurnView, now: float) -> None:
        """A running turn goes back to the queue; its output stays."""

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """A step of so many ``seconds`` prefilled and put out so many tokens of a turn."""

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """A turn ended, for whatever reason, before its KV is released or pinned."""

    def program_ended(self, program: ProgramView, now: float) -> None:
        """A program is forgotten."""

    def declared(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """A program's execution graph was declared; it holds together. Its turns name their step
        in ``hints.step``.
        """

    def tool_event(self, context: ContextView, event: ToolEvent, now: float) -> None:
        """A tool of a context made progress."""

    def pinned(self, context: ContextView, now: float) -> None:
        """A context's KV is held by a pin, from the end of its turn on."""

    def unpinned(self, context: ContextView, outcome: PinOutcome, now: float) -> None:
        """A context's pin ended; ``handed_off`` to its next turn, for one."""


PinBreak: TypeAlias = Literal["head", "last_resort"]
Preempts: TypeAlias = Callable[["TurnView", "TurnView", float], bool]
"""``(waiting, running, now)``: whether the waiting turn may take the running one's place."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A named composition.

    Args:
        name: what it was asked for by.
        order: ranks waiting turns.
        retention: how long KV stays.
        pin_break: for whom live pins are broken: ``last_resort`` only for a turn that has aged past
            the waiting bound, or when nothing else can run; ``head`` for any turn at the head.
        admission: who may start, beyond whether the pages fit.
        prefill_order: ranks started prefills for the step's token budget; None: as they started.
        preempts: for a head that does not fit; a turn is preempted so at most once. None: never.
        reorders: ranks of waiting turns change other than by pins and preemptions, so that they
            must be asked for anew at each step.
        epoch: a number that changes when all ranks do, and only then; None: that never happens.
        groups: whose turns take turns, above the order; None: all are of one group.
        tiering: what moves between the pool and a host tier, where there is one.
        yields: how readily a context's pin is broken: the one with the largest value first, asked
            when it is pinned. None: the one whose program arrived last.
        listeners: told what happens, in this order.
    """

    name: str
    order: Order
    retention: Retention
    pin_break: PinBreak = "last_resort"
    admission: Admission = field(default_factory=AdmitAll)
    prefill_order: Order | None = None
    preempts: Preempts | None = None
    reorders: bool = False
    epoch: Callable[[], int] | None = None
    groups: Groups | None = None
    tiering: Tiering = field(default_factory=lambda: KeepOnHost())
    yields: Callable[[ContextView], float] | None = None
    listeners: tuple[Listener, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Have KV in the pool from ``at`` on, and hold it there for ``keep`` seconds if nobody needs
    its pages."""

    at: float
    keep: float


class Tiering(Protocol):
    """Decides what a host tier is used for. It costs bandwidth, never correctness."""

    def offload(self, turn: TurnView, now: float) -> bool:
        """Return whether the KV of a turn that ends is copied to the host."""
        ...

    def reload(self, tokens: int) -> bool:
        """Return whether to load so many tokens from the host rather than to prefill them."""
        ...

    def prefetch(self, context: ContextView, now: float) -> Prefetch | None:
        """Return from when on the KV of a context that is away should be back; None: never.

        Asked when its turn has ended, and again when its tool makes progress.
        """
        ...


class KeepOnHost:
    """Tiering that copies everything to the host and loads it when it is needed."""

    def offload(self, turn: TurnView, now: float) -> bool:
        """Return True."""
        return True

    def reload(self, tokens: int) -> bool:
        """Return True."""
        return True

    def prefetch(self, context: ContextView, now: float) -> Prefetch | None:
        """Return None."""
        return None


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

    rescore = False

    def __init__(self, score: Callable[[CachedRun], Any]) -> None:
        self._score = score

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return 0."""
        return 0.0

    def pin_expiring(self, context: ContextView, waited: float, now: float) -> float:
        """Return 0."""
        return 0.0

    def tool_event(self, context: ContextView, event: ToolEvent, now: float) -> float | None:
        """Return None."""
        return None

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn nothing."""

    def admitted(self, queue_seconds: float, evicted: bool) -> None:
        """Learn nothing."""

    def program_ended(self, turns: int) -> None:
        """Learn nothing."""

    def score(self, run: CachedRun) -> Any:
        """Rank as the score function given at construction does."""
        return self._score(run)
