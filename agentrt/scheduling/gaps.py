"""How long after the end of a turn its context is back: learned distributions, asked while waiting.

A gap is the return-to-LLM time: from the end of a turn to the submission of the context's next one,
in seconds. Gaps are learned at several levels, fine to coarse::

    program + tool:kind  ->  tool:kind  ->  tool  ->  agent type  ->  all  ->  prior

and a level with ``n`` samples says ``n / (n + k)`` of the answer, the coarser ones the rest
(interpolated back-off, Jelinek and Mercer 1980, with the count-dependent weight of Witten and
Bell 1991). The prior is a Pareto tail (Lomax), so that a context that stays away longer than
anything seen is expected to stay away longer still, and no conditional is ever undefined. All
questions are asked *given* the time already waited: a TTL by tool name alone is weak
(``Continuum``, arXiv 2511.02230, criticised by its independent reproductions).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias

from agentrt.scheduling.continuum import GapHistory

__all__ = ["GapConfig", "GapDistribution", "GapKey", "GapModel", "GapPhase", "Lomax"]

GapPhase: TypeAlias = Literal["turn", "exit", "kill"]
"""From when a gap is counted: the end of the turn, or the exit or kill of its tool's process."""


class GapKey(NamedTuple):
    """What a gap is learned under. ``kind`` refines a tool: for a shell, ``test`` or ``git``."""

    tool: str | None = None
    kind: str | None = None
    agent: str | None = None
    program: str | None = None

    @classmethod
    def of(cls, tool: str | None, agent: str | None = None, program: str | None = None) -> GapKey:
        """Return the key of a tool as hints name it: ``read``, or ``bash:test`` with its kind."""
        name, _, kind = (tool or "").partition(":")
        return cls(name or None, kind or None, agent, program)


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


@dataclass(frozen=True, slots=True)
class GapConfig:
    """Bounds and weights of the gap model.

    Args:
        window: samples kept for each level of each key; the oldest go first.
        program_window: the same for a program's own history.
        total_window: the same for the coarsest level.
        max_keys: levels kept; the one unused for longest goes first.
        strength: ``k``: how many samples weigh as much as all coarser levels together.
        prior: what is assumed when nothing is known (median 1 s, P95 8 s, mean 2.4 s).
        exit_prior: the same, once the tool's process has exited (median 0.05 s).
    """

    window: int = 128
    program_window: int = 32
    total_window: int = 256
    max_keys: int = 2048
    strength: float = 6.0
    prior: Lomax = Lomax()
    exit_prior: Lomax = Lomax(scale=0.12)


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
        points = sorted((gap, weight / len(gaps)) for gaps, weight in parts for gap in gaps)
        self._tail = tail
        self._tail_weight = tail_weight
        self._gaps = [gap for gap, _ in points]
        # mass and first moment of the samples from index i on; one entry past the end
        self._mass = _suffix_sums([mass for _, mass in points])
        self._moment = _suffix_sums([gap * mass for gap, mass in points])

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
        base, excess = self.survival(waited), self._excess(waited)
        best, best_score = 0.0, 0.0
        for at in self._candidates(benefit, waited):
            paid = (base - self.survival(at)) * benefit - (excess - self._excess(at))
            if paid > best_score:
                best, best_score = at - waited, paid
        return best

    def _candidates(self, benefit: float, waited: float) -> Iterator[float]:
        yield from self._gaps[bisect_right(self._gaps, waited) :]
        pays_until = self._tail.pays_until(benefit)
        if pays_until > max(waited, self._gaps[-1] if self._gaps else 0.0):
            yield pays_until

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


Level: TypeAlias = tuple[Any, ...]
STALE = 32


class GapModel:
    """Learns gaps and answers with the distribution of a key. Memory is bounded by its config.

    Adding a gap costs one binary search and one bounded insertion a level. A distribution is made
    anew once its levels have grown by a thirty-second, or by ``STALE`` samples in all.
    """

    def __init__(self, config: GapConfig | None = None) -> None:
        self._config = config or GapConfig()
        self._levels: OrderedDict[Level, GapHistory] = OrderedDict()
        self._made: OrderedDict[Level, tuple[int, GapDistribution]] = OrderedDict()
        self._added: dict[Level, int] = {}

    def __len__(self) -> int:
        """Return how many levels hold samples."""
        return len(self._levels)

    def add(self, key: GapKey, gap: float, phase: GapPhase = "turn") -> None:
        """Learn a gap of ``gap`` seconds; a negative one counts as 0."""
        for level in _levels(key, phase):
            history = self._levels.get(level)
            if history is None:
                history = self._levels[level] = GapHistory(self._window(level))
            self._levels.move_to_end(level)
            history.add(max(0.0, gap))
            self._added[level] = self._added.get(level, 0) + 1
        while len(self._levels) > self._config.max_keys:
            self._drop(next(iter(self._levels)))

    def distribution(self, key: GapKey, phase: GapPhase = "turn") -> GapDistribution:
        """Return what is known for ``key``; the prior alone when nothing is."""
        levels = list(_levels(key, phase))
        stamp = sum(self._added.get(level, 0) for level in levels)
        made = self._made.get(levels[0])
        if made is not None and made[0] <= stamp <= made[0] + min(made[0] // 32, STALE):
            return made[1]
        fresh = self._blend(levels, phase)
        self._made[levels[0]] = (stamp, fresh)
        if len(self._made) > self._config.max_keys:
            self._made.popitem(last=False)
        return fresh

    def samples(self, key: GapKey, phase: GapPhase = "turn") -> int:
        """Return how many gaps the tool (and kind, if the key has one) has been seen with."""
        own = next(level for level in _levels(key, phase) if level[1] != "program")
        return len(self._levels.get(own, ()))

    def forget(self, program: str) -> None:
        """Drop a program's own history; what it taught the coarser levels stays."""
        for level in [level for level in self._levels if level[1:3] == ("program", program)]:
            self._drop(level)

    def _blend(self, levels: Sequence[Level], phase: GapPhase) -> GapDistribution:
        parts: list[tuple[Sequence[float], float]] = []
        left = 1.0
        for level in levels:
            history = self._levels.get(level)
            if history:
                weight = left * len(history) / (len(history) + self._config.strength)
                parts.append((history.sorted, weight))
                left -= weight
        prior = self._config.prior if phase == "turn" else self._config.exit_prior
        return GapDistribution(parts, prior, left)

    def _window(self, level: Level) -> int:
        windows = {"program": self._config.program_window, "all": self._config.total_window}
        return windows.get(level[1], self._config.window)

    def _drop(self, level: Level) -> None:
        del self._levels[level]
        self._added.pop(level, None)
        self._made.pop(level, None)


def _levels(key: GapKey, phase: GapPhase) -> Iterator[Level]:
    """Yield the levels of ``key``, fine to coarse; the last one is that of all gaps."""
    if key.program is not None:
        yield (phase, "program", key.program, key.tool, key.kind)
    if key.kind is not None:
        yield (phase, "kind", key.tool, key.kind)
    yield (phase, "tool", key.tool)
    if key.agent is not None:
        yield (phase, "agent", key.agent)
    yield (phase, "all")
