"""How dear the waiting bound is: what calling in all outside once per ``max_wait`` would take.

A turn that has aged past the bound runs whatever it displaces, and its context is prefilled for it.
With ``w`` turns waiting, contexts inside of ``c`` tokens on average, and the measured prefill::

    price = w * prefill_seconds(c) / max_wait        as a share of all the time there is

Where that is small, the bound hardly matters and programs may go in any order. Where it is not, an
order that starts everybody soon leaves many half-done programs outside, each dear to call in again;
in order of arrival those outside have not begun, and are cheap.
"""

from __future__ import annotations

from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policies.residency import Residency
from agentrt.scheduling.policy import Listener, TurnView
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["Crowd"]

DEAR, CHEAP = 0.25, 0.1
"""Shares of all time: above the one a crowd begins, below the other it is over."""
HALF_LIFE = 600.0
"""Seconds: crowds come back, so that one that was there counts for half after this time."""


class Crowd(Listener):
    """Follows the price. ``dear``: whether it is too high; ``epoch``: how often that has changed.

    ``max_wait`` may be infinite: then nobody is ever called in, and the price is 0.
    """

    def __init__(self, residency: Residency, around: Surroundings) -> None:
        self._residency = residency
        self._prefill = around.prefill_seconds
        self._peak = 0.0
        self._seen = 0.0
        self.dear = False
        self.epoch = 0

    def submitted(self, turn: TurnView, now: float) -> None:
        """Look again: one more waits."""
        self._look(now)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Look again: there is room for others."""
        self._look(now)

    def _look(self, now: float) -> None:
        faded = self._peak * 0.5 ** ((now - self._seen) / HALF_LIFE)
        self._peak, self._seen = max(self.price(), faded), now
        if self._peak > DEAR if not self.dear else self._peak < CHEAP:
            self.dear = not self.dear
            self.epoch += 1

    def price(self) -> float:
        """Return the share of all time that calling in those who wait would take, at most 1."""
        pool, sets = self._residency.pool, self._residency.sets
        if pool is None or not sets:
            return 0.0
        seconds = pool.waiting * self._prefill(round(sets.mean_tokens))
        return seconds / pool.max_wait if seconds < pool.max_wait else 1.0
