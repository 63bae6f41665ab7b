"""Admission by the future of working sets: a program comes in if those inside will go on fitting.

Past-Future (ASPLOS'25) looks at the running turns' memory over future points in time; here the same
is asked of programs, over future turns. With contexts ``i`` inside that hold ``c_i`` tokens after
``n_i`` turns, ``g`` tokens of growth a turn, and ``S_i(k)`` the chance that a program goes on for
more than ``k`` turns (``program_sizes.py``, or what it tells), demand after ``k`` more turns has::

    mean(k) = sum_i S_i(k) (c_i + k g)        variance(k) = sum_i S_i(k) (1 - S_i(k)) (c_i + k g)^2

and a newcomer waits while ``mean(k) + z * sqrt(variance(k))`` exceeds the pool for some ``k``. Time
runs in turns: programs are taken to make them equally fast.
"""

from __future__ import annotations

import math

from agentrt.scheduling.policies.crowd import Crowd
from agentrt.scheduling.policies.program_sizes import ProgramSizes
from agentrt.scheduling.policies.residency import Residency, Stage
from agentrt.scheduling.policy import AdmitAll, PoolView, TurnView, Verdict

__all__ = ["WorkingSetAdmission"]

HORIZON = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
"""Future points, in turns from now."""


MARGIN, GUEST_MARGIN = 0.5, 1.0
"""Standard deviations of demand that are kept free; the more where guests come and go."""


class WorkingSetAdmission(AdmitAll):
    """Holds back turns that are not inside; further where a crowd outside sends in guests."""

    def __init__(self, sizes: ProgramSizes, residency: Residency, crowd: Crowd) -> None:
        self._sizes = sizes
        self._residency = residency
        self._crowd = crowd
        self._chances: dict[Stage, tuple[float, ...]] = {}
        self._version = -1

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``wait`` for a newcomer that would crowd the pool."""
        if not self._residency.sets or self._residency.is_inside(turn):
            return "start"
        tokens = turn.prompt_tokens + turn.max_output
        stage = self._residency.stage(turn)
        return "start" if self.peak(tokens, stage) <= pool.capacity else "wait"

    def peak(self, tokens: int, stage: Stage) -> float:
        """Return the largest demand over the horizon, in tokens, with a newcomer of that size."""
        held = [
            (self._chance(of), count, sum_, squares)
            for of, count, sum_, squares in self._residency.sets.groups()
        ]
        held.append((self._chance(stage), 1, float(tokens), float(tokens) ** 2))
        growth, most = self._sizes.growth, 0.0
        margin = GUEST_MARGIN if self._crowd.dear else MARGIN
        for point, ahead in enumerate(HORIZON):
            grown = ahead * growth
            mean = variance = 0.0
            for chances, count, sum_, squares in held:
                chance = chances[point]
                mean += chance * (sum_ + count * grown)
                spread = squares + 2 * grown * sum_ + count * grown * grown
                variance += chance * (1 - chance) * spread
            most = max(most, mean + margin * math.sqrt(variance))
        return most

    def _chance(self, stage: Stage) -> tuple[float, ...]:
        """Return the chances to go on past each point of the horizon."""
        if self._version != self._sizes.version:
            self._version = self._sizes.version
            self._chances.clear()
        found = self._chances.get(stage)
        if found is None:
            turns = stage.turns
            found = (
                tuple(float(ahead <= turns) for ahead in HORIZON)
                if stage.told
                else tuple(self._sizes.survival(turns, ahead) for ahead in HORIZON)
            )
            self._chances[stage] = found
        return found
