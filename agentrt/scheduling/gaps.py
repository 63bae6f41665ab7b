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

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from agentrt.scheduling.continuum import GapHistory
from agentrt.scheduling.gap_distribution import GapDistribution, Lomax

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


PRIOR = Lomax()
EXIT_PRIOR = Lomax(scale=0.12)


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
    prior: Lomax = PRIOR
    exit_prior: Lomax = EXIT_PRIOR


Level: TypeAlias = tuple[Any, ...]
STALE = 32
RESOLUTION = 96
FEWEST = 8


class GapModel:
    """Learns gaps and answers with the distribution of a key. Memory is bounded by its config.

    Adding a gap costs one binary search and one bounded insertion a level. What all programs say is
    made anew once its levels have grown by a thirty-second, or by ``STALE`` samples in all; a level
    is represented by as many of its quantiles as its weight deserves, ``RESOLUTION`` in all. A
    program's own samples are mixed in as they are.
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
        common = self._common(list(_levels(key._replace(program=None), phase)), phase)
        if key.program is None:
            return common
        own = self._levels.get(next(_levels(key, phase)))
        if not own:
            return common
        return common.blended(own.sorted, len(own) / (len(own) + self._config.strength))

    def samples(self, key: GapKey, phase: GapPhase = "turn") -> int:
        """Return how many gaps the tool (and kind, if the key has one) has been seen with."""
        own = next(level for level in _levels(key, phase) if level[1] != "program")
        return len(self._levels.get(own, ()))

    def forget(self, program: str) -> None:
        """Drop a program's own history; what it taught the coarser levels stays."""
        for level in [level for level in self._levels if level[1:3] == ("program", program)]:
            self._drop(level)

    def _common(self, levels: Sequence[Level], phase: GapPhase) -> GapDistribution:
        """Return what all programs together say, made anew where enough has been added."""
        stamp = sum(self._added.get(level, 0) for level in levels)
        made = self._made.get(levels[0])
        if made is not None and made[0] <= stamp <= made[0] + min(made[0] // 32, STALE):
            return made[1]
        fresh = self._blend(levels, phase)
        self._made[levels[0]] = (stamp, fresh)
        if len(self._made) > self._config.max_keys:
            self._made.popitem(last=False)
        return fresh

    def _blend(self, levels: Sequence[Level], phase: GapPhase) -> GapDistribution:
        parts: list[tuple[Sequence[float], float]] = []
        left = 1.0
        for level in levels:
            history = self._levels.get(level)
            if history:
                weight = left * len(history) / (len(history) + self._config.strength)
                parts.append((_thinned(history.sorted, weight), weight))
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


def _thinned(gaps: Sequence[float], weight: float) -> Sequence[float]:
    """Return evenly spaced quantiles of sorted samples, as many as ``weight`` deserves."""
    count = max(FEWEST, round(RESOLUTION * weight))
    if len(gaps) <= count:
        return gaps
    step = len(gaps) / count
    return [gaps[int((index + 0.5) * step)] for index in range(count)]


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
