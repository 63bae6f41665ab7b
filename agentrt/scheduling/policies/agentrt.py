"""Our policy: programs live in the pool or wait outside, the ones with least to do first.

    tenants    by two-level virtual time, where there are weights (``fairness.py``)
    order      preempted > aged past ``max_wait`` > programs that are inside > the others; in each
               by program size: turns served and left
    left       hinted (``remaining_turns``); else the mean of programs, whatever was served
    admission  newcomers start when the working sets inside will go on fitting
               (``working_set.py``)
    retention  pins last as long as their contexts are likely to be away (``return_times.py``)
    pins       give way only as a last resort; the lowest-ranked program's goes, not the newest's
    aged       turns are guests: they borrow pages for one turn, and nobody's place
               (``residency.py``)
    host tier  what is cheaper to load than to compute is kept there, and brought back before its
               context is likely to return (``tiers.py``)

Without hints this is least attained service, in turns of average service: a newcomer has more
chance to be short than a program that has gone on for long. With hints the shortest goes first, by
its whole size and not by what is left of it, since what counts is a program's slowdown. Where more
wait than can be called in within ``max_wait`` at a fair price, programs wait in the order of
arrival instead, since new ones are cheap to bring back (``crowd.py``).

Every ingredient can be switched off: ``agentrt=no-size,no-admission``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentrt.errors import ConfigError
from agentrt.scheduling.fairness import by_tenants
from agentrt.scheduling.policies.crowd import Crowd
from agentrt.scheduling.policies.program_sizes import ProgramSizes
from agentrt.scheduling.policies.residency import Residency
from agentrt.scheduling.policies.return_times import AwayContexts, ReturnTimes
from agentrt.scheduling.policies.tiers import CheapestPlace
from agentrt.scheduling.policies.working_set import WorkingSetAdmission
from agentrt.scheduling.policy import (
    AdmitAll,
    ContextView,
    KeepOnHost,
    Policy,
    ProgramView,
    TurnView,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["INGREDIENTS", "SizeOrder", "agentrt"]

INGREDIENTS = (
    "size",
    "hints",
    "admission",
    "guests",
    "victims",
    "return-times",
    "tool-events",
    "tiers",
    "prefetch",
    "tenants",
)
"""What ``no-NAME`` switches off."""

PLAIN_TTL = 30.0


class SizeOrder:
    """Ranks programs by what they have had and have left, in turns; also whose pin goes first.

    ``inside_first`` ranks turns of programs that are inside before the others.
    """

    def __init__(
        self,
        sizes: ProgramSizes,
        residency: Residency,
        crowd: Crowd,
        *,
        by_size: bool,
        inside_first: bool,
    ) -> None:
        self._inside_first = inside_first
        self._sizes = sizes
        self._residency = residency
        self._crowd = crowd
        self._by_size = by_size

    def __call__(self, turn: TurnView) -> tuple[Any, ...]:
        """Order preempted turns first, then pinned ones, then by size; arrival breaks ties."""
        inside = not self._inside_first or self._residency.is_inside(turn)
        key = self.size(turn) if self._sizes_count() else 0.0
        return (turn.preemptions == 0, not inside, key, turn.program_arrival, turn.submitted)

    def _sizes_count(self) -> bool:
        return self._by_size and not self._crowd.dear

    def size(self, turn: TurnView) -> float:
        """Return the index of a turn's program: the smaller goes first."""
        self._residency.hear(turn)
        return self._index(turn.program)

    def _index(self, program: ProgramView) -> float:
        total = self._residency.told_turns(program)
        if total is not None:
            return float(max(total, program.turns_served))
        return program.service / self._sizes.turn_seconds + self._sizes.mean_turns

    def yields(self, context: ContextView) -> float:
        """Return how readily a program's pin is broken: the last in order first."""
        program = context.program
        if self._sizes_count():
            return self._index(program)
        return program.arrival


def _switches(argument: str | None) -> set[str]:
    """Return what ``no-a,no-b`` switches off.

    Raises:
        ConfigError: it names no ingredient.
    """
    words = [word.strip() for word in (argument or "").split(",") if word.strip()]
    off = {word.removeprefix("no-") for word in words}
    if any(not word.startswith("no-") for word in words) or not off <= set(INGREDIENTS):
        raise ConfigError(
            f"agentrt has no ingredient as in {argument!r}.",
            remedy="Switch off any of: " + ",".join(f"no-{name}" for name in INGREDIENTS) + ".",
        )
    return off


def agentrt(argument: str | None, around: Surroundings) -> Policy:
    """Return the policy for ``agentrt`` or ``agentrt=no-INGREDIENT,…``.

    Raises:
        ConfigError: the argument names no ingredient.
    """
    off = _switches(argument)
    tiered = around.reload_seconds is not None
    sizes, residency = (
        ProgramSizes(),
        Residency(guests="guests" not in off, heed_hints="hints" not in off),
    )
    crowd = Crowd(residency, around)
    away = AwayContexts(heed_tools="tool-events" not in off)
    # With a host tier programs need no place of their own: what they lose is cheap to bring back.
    order = SizeOrder(
        sizes,
        residency,
        crowd,
        by_size="size" not in off,
        inside_first=not tiered,
    )
    bounded = "admission" not in off and not tiered
    fixed = PLAIN_TTL if "return-times" in off else None
    policy = Policy(
        "agentrt" if argument is None else f"agentrt={argument}",
        order,
        ReturnTimes(away, residency, around, fixed=fixed),
        admission=WorkingSetAdmission(sizes, residency, crowd) if bounded else AdmitAll(),
        tiering=KeepOnHost()
        if "tiers" in off
        else CheapestPlace(around, None if "prefetch" in off else away),
        yields=None if "victims" in off else order.yields,
        epoch=lambda: crowd.epoch,
        listeners=(sizes, residency, crowd, away),
    )
    if around.tenants and "tenants" not in off:
        return replace(by_tenants(policy, around.tenants), name=policy.name)
    return policy
