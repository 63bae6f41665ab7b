"""A mixture of observed samples and a Pareto tail, asked given what has passed already. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

__all__ = ["GapDistribution", "Lomax"]


@dataclass(frozen=True, slots=True)
class Lomax:
    """A Pareto tail from 0: ``S(t) = (1 + t / scale) ** -shape``, with ``shape > 1``."""

    scale: float = 2.4
    shape: float = 2.0

    def survival(self, t: float) -> float:
        """Return P(X > t)."""
        return float((1.0 + t / self.scale) ** -self.shape)

    def excess(self, t: float) -> float:
        """Return E[max(0, X - t)]."""
        return self.survival(t) * (self.scale + t) / (self.shape - 1.0)

    def pays_until(self, benefit: float) -> float:
        """Return until when waiting pays: the hazard ``shape / (scale + t)`` is ``1 / benefit``."""
        return self.shape * benefit - self.scale

    def inverse(self, survival: float) -> float:
        """Return the t at which P(X > t) is ``survival``, which lies in (0, 1]."""
        return self.scale * float(survival ** (-1.0 / self.shape) - 1.0)


class GapDistribution:
    """A mixture of observed samples and a tail. Immutable; times and answers are in seconds.

    ``waited`` is how long ago the gap began; every answer is given that it has not ended yet.

    Args:
        parts: sorted samples and the weight of each set; empty sets must not be given.
        tail: the prior.
        tail_weight: its weight, above 0; all weights add up to 1.
    """

    def __init__(
        self, parts: Sequence[tuple[Sequence[float], float]], tail: Lomax, tail_weight: float
    ) -> None:
        self._set(
            sorted((gap, weight / len(gaps)) for gaps, weight in parts for gap in gaps),
            tail,
            tail_weight,
        )

    def _set(self, points: list[tuple[float, float]], tail: Lomax, tail_weight: float) -> None:
        self._points = points
        self._tail = tail
        self._tail_weight = tail_weight
        self._gaps = [gap for gap, _ in points]
        # mass and first moment of the samples from index i on; one entry past the end
        self._mass = _suffix_sums([mass for _, mass in points])
        self._moment = _suffix_sums([gap * mass for gap, mass in points])

    def blended(self, gaps: Sequence[float], weight: float) -> GapDistribution:
        """Return this distribution with sorted ``gaps`` mixed in, which get ``weight`` in all."""
        rest = 1.0 - weight
        points = [(gap, weight / len(gaps)) for gap in gaps]
        points += [(gap, mass * rest) for gap, mass in self._points]
        points.sort()
        made = GapDistribution.__new__(GapDistribution)
        made._set(points, self._tail, self._tail_weight * rest)
        return made

    def survival(self, t: float) -> float:
        """Return P(gap > t), above 0 for every finite t."""
        after = self._mass[bisect_right(self._gaps, t)]
        return after + self._tail_weight * self._tail.survival(t)

    def within(self, tau: float, waited: float = 0.0) -> float:
        """Return the probability of a return in the next ``tau`` seconds."""
        return 1.0 - self.survival(waited + tau) / self.survival(waited)

    def remaining(self, waited: float = 0.0) -> float:
        """Return the expected time until the return."""
        return self._excess(waited) / self.survival(waited)

    def hold(self, tau: float, waited: float = 0.0) -> float:
        """Return the expected time that a pin of at most ``tau`` is held: ``E[min(left, tau)]``."""
        held = self._excess(waited) - self._excess(waited + tau)
        return max(0.0, held) / self.survival(waited)

    def quantile(self, p: float, waited: float = 0.0) -> float:
        """Return the least time after which a return has the probability ``p``, in [0, 1)."""
        target = (1.0 - p) * self.survival(waited)
        low, high = bisect_right(self._gaps, waited), len(self._gaps)
        while low < high:  # the first sample at which little enough is left
            middle = (low + high) // 2
            if self.survival(self._gaps[middle]) <= target:
                high = middle
            else:
                low = middle + 1
        at = self._tail_reaches(target, self._mass[low])
        if low < len(self._gaps):
            at = min(at, self._gaps[low])
        return max(0.0, at - waited)

    def best_ttl(self, benefit: float, waited: float = 0.0) -> float:
        """Return the tau that maximises ``within(tau) * benefit - hold(tau)``; the least at a tie.

        Eq. 2 of Continuum (arXiv 2511.02230) given the time waited, and with what a pin really
        costs: it is released at the return, so it is held for ``min(left, tau)``, not for ``tau``.
        The candidates are 0, every sample, and past the last one the point up to which the tail
        pays; between two samples what the tail adds is left out.
        """
        first = bisect_right(self._gaps, waited)
        # paid: benefit of what returns, less the time held; both up to a constant and a factor
        best, least = waited, self.survival(waited) * benefit - self._excess(waited)
        for index in range(first, len(self._gaps)):
            cost = self._costs[index] * benefit - self._holds[index]
            if cost < least:
                best, least = self._gaps[index], cost
        last = self._tail.pays_until(benefit)
        if last > max(waited, self._gaps[-1] if self._gaps else 0.0):
            cost = self.survival(last) * benefit - self._excess(last)
            best = last if cost < least else best
        return best - waited

    @cached_property
    def _costs(self) -> list[float]:
        """What survives each sample."""
        return [self.survival(gap) for gap in self._gaps]

    @cached_property
    def _holds(self) -> list[float]:
        """What is expected after each sample."""
        return [self._excess(gap) for gap in self._gaps]

    def _excess(self, t: float) -> float:
        index = bisect_right(self._gaps, t)
        samples = self._moment[index] - t * self._mass[index]
        return max(0.0, samples) + self._tail_weight * self._tail.excess(t)

    def _tail_reaches(self, target: float, mass: float) -> float:
        """Return when the tail alone brings survival to ``target`` while samples hold ``mass``."""
        share = (target - mass) / self._tail_weight
        return self._tail.inverse(min(1.0, share)) if share > 0 else float("inf")


def _suffix_sums(values: Sequence[float]) -> list[float]:
    sums = list(accumulate(reversed(values), initial=0.0))
    sums.reverse()
    return sums
