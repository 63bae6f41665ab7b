"""InferCept: of discarding, preserving and swapping out, what wastes the least memory over time.

Source: ICML'24 (arXiv 2402.01869), Eqs. 1 to 5 as known second-hand; WukLab/InferCept. When a
turn of ``C`` tokens ends with a tool call, in token-seconds (a token's bytes cancel)::

    discard  = T_fwd(C) * (C + C_other) / 2     recomputed in chunks, which about halves it
    preserve = T_int * C                        held while the tool runs
    swap     = 2 * T_swap(C) * C_batch          all of the batch waits for the copy, both ways

The least is done. ``C_other`` is what the other running turns hold, ``C_batch`` that and ``C``. A
preserved context is let go of when it has cost as much as the next best: a tool's time is estimated
by the time it has taken so far, so the pin lasts ``min(discard, swap) / C`` (the break-even of a
known port). A returning turn keeps its first arrival: order by program.

Swaps must stay hidden behind forward steps. The paper gives each iteration a budget and the largest
waste first; here, where contexts end one at a time, one is swapped out only when the copies
before it are hidden behind the steps since.

Left open by the paper, chosen here: ``T_int`` is the mean of the tool's gaps, once it has been
seen; before that nothing has passed, so the context is preserved.

Known defect: the waste is that of memory alone. What a program loses in the queue when its KV is
gone is not in it, so under high load pins are too short to stop thrashing; with a host tier
``swap`` is so cheap that ``preserve`` almost never wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.scheduling.graph_profile import Mean
from agentrt.scheduling.policy import (
    KeepNothing,
    KeepOnHost,
    Listener,
    Policy,
    PoolView,
    PrefillSeconds,
    TurnView,
    by_program,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["Interception", "Waste", "infercept", "wastes"]

Choice: TypeAlias = Literal["discard", "preserve", "swap"]


@dataclass(frozen=True, slots=True)
class Waste:
    """Token-seconds wasted by each choice; ``swap`` is infinite without a host tier."""

    discard: float
    preserve: float
    swap: float

    @property
    def least(self) -> Choice:
        """The choice that wastes the least; preserving before swapping before discarding."""
        if self.preserve <= min(self.discard, self.swap):
            return "preserve"
        return "swap" if self.swap <= self.discard else "discard"


def wastes(
    tokens: int, others: int, gap: float, forward_seconds: float, swap_seconds: float
) -> Waste:
    """Return the waste of a context of ``tokens`` while ``others`` are held by running turns.

    Args:
        tokens: ``C``.
        others: ``C_other``.
        gap: ``T_int`` in seconds.
        forward_seconds: ``T_fwd(C)``.
        swap_seconds: ``T_swap(C)``, one way.
    """
    return Waste(
        discard=forward_seconds * (tokens + others) / 2,
        preserve=gap * tokens,
        swap=2 * swap_seconds * (tokens + others),
    )


class _Engine(Listener):
    """What runs, and how much copying is not yet hidden behind steps, in seconds."""

    def __init__(self) -> None:
        self.backlog = 0.0
        self._pool: PoolView | None = None
        self._step_end = -1.0

    def opened(self, pool: PoolView) -> None:
        """Keep the pool, to know what runs."""
        self._pool = pool

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Copies go on behind a step; count each step once."""
        if now > self._step_end:
            self._step_end = now
            self.backlog = max(self.backlog - seconds, 0.0)

    def held_beside(self, turn: TurnView) -> int:
        """Return the tokens in KV of all running turns but this one."""
        running = self._pool.running if self._pool is not None else ()
        return sum(other.computed for other in running if other is not turn)


class Interception(KeepNothing, KeepOnHost):
    """Decides at the end of each turn: retention and tiering in one, since they must agree."""

    def __init__(self, forward: PrefillSeconds, swap: PrefillSeconds | None) -> None:
        super().__init__(program_score)
        self.engine = _Engine()
        self._forward = forward
        self._swap = swap
        self._gaps: dict[str, Mean] = {}
        self._swapped: TurnView | None = None

    def waste(self, turn: TurnView) -> Waste:
        """Return what each choice wastes for a turn that ends now with a tool call."""
        tokens, others = turn.length, self.engine.held_beside(turn)
        gap = self._gaps.get(turn.tool or "")
        swap = self._swap(tokens) if self._swap is not None else float("inf")
        return wastes(tokens, others, gap.value if gap else 0.0, self._forward(tokens), swap)

    def offload(self, turn: TurnView, now: float) -> bool:
        """Swap out if that wastes least and earlier copies are hidden."""
        self._swapped = None
        if turn.tool is None or self._swap is None or self.engine.backlog > 0:
            return False
        if self.waste(turn).least != "swap":
            return False
        self.engine.backlog += self._swap(turn.length)
        self._swapped = turn
        return True

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Preserve until that has cost as much as the next best choice."""
        swapped, self._swapped = self._swapped, None
        if turn.tool is None or swapped is turn:
            return 0.0
        waste = self.waste(turn)
        if waste.preserve > waste.discard:
            return 0.0
        return min(waste.discard, waste.swap) / turn.length

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn how long a tool takes."""
        self._gaps.setdefault(tool or "", Mean()).add(gap)


def infercept(around: Surroundings) -> Policy:
    """Return ``infercept``; it swaps where there is a host tier."""
    interception = Interception(around.prefill_seconds, around.reload_seconds)
    return Policy(
        "infercept",
        by_program,
        interception,
        tiering=interception,
        listeners=(interception.engine,),
    )
