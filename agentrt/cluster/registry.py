"""Placements by name: ``agentrt``, ``affinity=0.8``, ``two-hash=5``, ``prefix``, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agentrt.cluster.affinity import BoundedAffinity, by_working_set
from agentrt.cluster.baselines import RoundRobin, least_loaded
from agentrt.cluster.placement import Placement, StealRule
from agentrt.cluster.prefix_aware import prefix_aware
from agentrt.cluster.two_hash import TwoHash
from agentrt.errors import ConfigError

__all__ = ["make_placement", "placement_names"]


def _number(name: str, argument: str, default: float) -> float:
    try:
        value = float(argument) if argument else default
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(
            f"{name}={argument} is not a number above 0.", remedy=f"Write {name}={default:g}."
        )
    return value


def _plain(name: str, argument: str, placement: Placement) -> Placement:
    if argument:
        raise ConfigError(f"{name} takes no argument.", remedy=f"Write it as {name}.")
    return placement


def _affinity(argument: str) -> Placement:
    rule = BoundedAffinity(_number("affinity", argument, 0.8))
    return Placement("affinity", rule, StealRule(), migrates=True)


def _agentrt(argument: str) -> Placement:
    placement = Placement("agentrt", by_working_set, StealRule(), migrates=True)
    return _plain("agentrt", argument, placement)


def _saga(argument: str) -> Placement:
    """SAGA as published: affinity below a load of 0.8, steals without regard to their price."""
    placement = Placement("saga", BoundedAffinity(0.8), StealRule(patient=False), migrates=True)
    return _plain("saga", argument, placement)


FACTORIES: dict[str, Callable[[str], Placement]] = {
    "agentrt": _agentrt,
    "affinity": _affinity,
    "two-hash": lambda text: Placement("two-hash", TwoHash(_number("two-hash", text, 5.0))),
    "prefix": lambda text: _plain("prefix", text, Placement("prefix", prefix_aware)),
    "least-loaded": lambda text: _plain(
        "least-loaded", text, Placement("least-loaded", least_loaded)
    ),
    "saga": _saga,
    "round-robin": lambda text: _plain("round-robin", text, Placement("round-robin", RoundRobin())),
}


def placement_names() -> list[str]:
    """Return the names that ``make_placement`` knows, without arguments."""
    return sorted(FACTORIES)


def make_placement(spec: str, *, steal: bool | None = None) -> Placement:
    """Make a placement from ``NAME`` or ``NAME=ARGUMENT``.

    Args:
        spec: for example ``affinity=0.8`` (its load bound) or ``two-hash=5`` (its objective in
            seconds to the first token).
        steal: whether idle workers steal; None: as the placement was published.

    Raises:
        ConfigError: no placement has this name, or the argument is wrong.
    """
    name, _, argument = spec.strip().partition("=")
    factory = FACTORIES.get(name)
    if factory is None:
        raise ConfigError(
            f"There is no placement named {name!r}.",
            remedy=f"Choose one of: {', '.join(placement_names())}.",
        )
    placement = replace(factory(argument), name=spec.strip())
    if steal is None:
        return placement
    return replace(placement, steal=(placement.steal or StealRule()) if steal else None)
