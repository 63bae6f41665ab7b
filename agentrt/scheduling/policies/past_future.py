"""Past-Future: a turn starts if the KV of all running ones will fit at every point of the future.

Source: ASPLOS'25, LightLLM. The remaining output ``r_i`` of a turn is drawn from the outputs of
earlier turns that were longer than what it has put out. With ``r`` descending and ``cur`` the
tokens that a turn holds now, memory peaks when one of them ends::

    peak = max over i of  sum over j <= i of cur_j  +  i * r_i

Left open, chosen here: the window of the history (1,000 turns); before anything has ended, and
beyond the longest output seen, a turn is taken to put out all it may. A turn's own bound on its
output caps each draw. Draws are seeded, so that a run can be repeated. Order by arrival, LRU.

Known defect: it looks at running turns, not at programs. It replaces a watermark within a batch and
does nothing for KV that programs need between their turns; where pages for the whole output are
reserved anyway it never holds back what would fit.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable

from agentrt.scheduling.continuum import GapHistory
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import (
    AdmitAll,
    KeepNothing,
    Listener,
    Policy,
    PoolView,
    TurnView,
    Verdict,
    by_arrival,
    lru_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["OutputHistory", "PeakAdmission", "past_future", "peak_tokens"]

WINDOW = 1000


def peak_tokens(turns: Iterable[tuple[int, int]]) -> int:
    """Return the most tokens held at a time by turns of ``(held now, still to put out)``."""
    held = peak = 0
    ordered = sorted(turns, key=lambda turn: turn[1], reverse=True)
    for count, (current, left) in enumerate(ordered, start=1):
        held += current
        peak = max(peak, held + count * left)
    return peak


class OutputHistory(Listener):
    """Lengths of the outputs that ended by themselves, and draws from them."""

    def __init__(self, seed: int = 0) -> None:
        self._lengths = GapHistory(WINDOW)
        self._random = random.Random(seed)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Learn an output."""
        if reason in ("stop", "length"):
            self._lengths.add(turn.output)

    def remaining(self, turn: TurnView) -> int:
        """Draw how many more tokens a turn will put out."""
        longer = self._lengths.sorted[bisect_right(self._lengths.sorted, turn.output) :]
        total = int(self._random.choice(longer)) if longer else turn.max_output
        return max(min(total, turn.max_output) - turn.output, 0)


class PeakAdmission(AdmitAll):
    """Admission by the predicted peak."""

    def __init__(self, history: OutputHistory) -> None:
        self._history = history

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``start`` if the peak with this turn is within the pool, else ``wait``."""
        turns = [*pool.running, turn]
        peak = peak_tokens((each.length, self._history.remaining(each)) for each in turns)
        return "start" if peak <= pool.capacity else "wait"


def past_future(around: Surroundings) -> Policy:
    """Return ``past-future``."""
    history = OutputHistory()
    return Policy(
        "past-future",
        by_arrival,
        KeepNothing(lru_score),
        admission=PeakAdmission(history),
        listeners=(history,),
    )
