"""Continuum: time-to-live pins by cost and benefit, program order, pinned programs first.

Source: arXiv 2511.02230 (v6), Eq. 2 and Alg. 1. With ``T`` the mean queueing delay of returning
turns whose KV had been evicted, and ``S[f]`` the observed gaps after tool ``f``::

    eta  = -Corr(k, N - k) over served turns k = 1 .. N of ended programs
    B    = T * eta + PrefillReload(r)
    tau* = argmax over tau in {0} and S[f] of  P(gap <= tau | f) * B - tau

Cold start: with at most ``K`` gaps known in all, the optimum for ``gap ~ Exp(1)`` and ``eta = 1``,
``tau = ln B`` for ``B > 1``, else 0. With at most ``K`` gaps known for the tool, the gaps of all
tools stand in. The paper leaves open the window of ``T`` (100 samples here), ties (the smallest
tau), and how many gaps are kept (4,096). A pin belongs to a context: a program with sub-agents has
several, where the paper has one.

Known defects: a tool's name says little of its time, and independent runs found the gain below that
of the best fixed TTL; the head of the queue breaks pins, so that under pressure few survive; first
turns wait behind all that return (1,800 s in one run), which only ``max_wait`` bounds here.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence

from agentrt.scheduling.fixed_ttl import pinned_first
from agentrt.scheduling.policy import (
    KeepNothing,
    Policy,
    PrefillSeconds,
    TurnView,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["ContinuumRetention", "GapHistory", "best_ttl", "cold_start_ttl", "continuum"]

HISTORY_THRESHOLD = 100
QUEUE_WINDOW = 100
HISTORY_CAP = 4096


def cold_start_ttl(benefit: float) -> float:
    """Return the optimum under ``gap ~ Exp(1)``: ``ln(benefit)``, or 0 if that is not positive."""
    return math.log(benefit) if benefit > 1.0 else 0.0


def best_ttl(gaps: Sequence[float], benefit: float) -> float:
    """Return the tau that maximises ``P(gap <= tau) * benefit - tau``; the smallest at a tie.

    ``gaps`` is sorted, in seconds; ``benefit`` is in seconds.
    """
    best, best_score = 0.0, bisect_right(gaps, 0.0) / len(gaps) * benefit if gaps else 0.0
    for index, tau in enumerate(gaps):
        if index + 1 < len(gaps) and gaps[index + 1] == tau:
            continue
        score = (index + 1) / len(gaps) * benefit - tau
        if score > best_score:
            best, best_score = tau, score
    return best


class GapHistory:
    """The last gaps seen, kept both by age and by size."""

    def __init__(self, cap: int = HISTORY_CAP) -> None:
        self._recent: deque[float] = deque()
        self.sorted: list[float] = []
        self._cap = cap

    def __len__(self) -> int:
        return len(self.sorted)

    def add(self, gap: float) -> None:
        """Add a gap in seconds; the oldest leaves when the cap is reached."""
        if len(self._recent) == self._cap:
            oldest = self._recent.popleft()
            del self.sorted[bisect_right(self.sorted, oldest) - 1]
        self._recent.append(gap)
        insort(self.sorted, gap)


class MemoryfulnessEstimate:
    """``eta = -Corr(k, N - k)``, over the served turns of ended programs; 1 until defined."""

    def __init__(self) -> None:
        self._n = 0
        self._k = self._r = self._kk = self._rr = self._kr = 0.0

    def add(self, turns: int) -> None:
        """Add a program that ended after ``turns`` turns: pairs ``(k, turns - k)``."""
        for served in range(1, turns + 1):
            left = turns - served
            self._n += 1
            self._k += served
            self._r += left
            self._kk += served * served
            self._rr += left * left
            self._kr += served * left

    @property
    def value(self) -> float:
        """The estimate, between -1 and 1."""
        covariance = self._n * self._kr - self._k * self._r
        spread = (self._n * self._kk - self._k**2) * (self._n * self._rr - self._r**2)
        return -covariance / math.sqrt(spread) if spread > 0 else 1.0


class ContinuumRetention(KeepNothing):
    """The TTL of Eq. 2, and LRU over what is not pinned (ended programs first)."""

    def __init__(self, prefill_seconds: PrefillSeconds) -> None:
        super().__init__(program_score)
        self._prefill_seconds = prefill_seconds
        self._by_tool: dict[str, GapHistory] = {}
        self._all = GapHistory()
        self._delays: deque[float] = deque(maxlen=QUEUE_WINDOW)
        self._eta = MemoryfulnessEstimate()

    def turn_ended(self, turn: TurnView, now: float) -> float:
        """Return tau*; 0 for a turn that ends without a tool call."""
        if turn.tool is None:
            return 0.0
        delay = sum(self._delays) / len(self._delays) if self._delays else 0.0
        reload = self._prefill_seconds(turn.length)
        if len(self._all) <= HISTORY_THRESHOLD:
            return cold_start_ttl(delay + reload)
        own = self._by_tool.get(turn.tool)
        gaps = own if own is not None and len(own) > HISTORY_THRESHOLD else self._all
        return best_ttl(gaps.sorted, delay * self._eta.value + reload)

    def returned(self, tool: str | None, gap: float) -> None:
        """Learn a gap under its tool's name."""
        if tool is not None:
            self._by_tool.setdefault(tool, GapHistory()).add(gap)
            self._all.add(gap)

    def admitted(self, queue_seconds: float, evicted: bool) -> None:
        """Learn the queueing delay of a returning turn whose KV was gone."""
        if evicted:
            self._delays.append(queue_seconds)

    def program_ended(self, turns: int) -> None:
        """Learn how many turns programs have."""
        self._eta.add(turns)


def continuum(around: Surroundings) -> Policy:
    """Return the policy with its published unpinning rule: the head of the queue breaks pins.

    ``PrefillReload`` is what bringing KV back costs: loading where there is a host tier.
    """
    reload = around.reload_seconds or around.prefill_seconds
    return Policy("continuum", pinned_first, ContinuumRetention(reload), "head")
