"""Which policies a command means: names, ``all``, and the swept fixed TTL."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.errors import ConfigError
from agentrt.scheduling import make_policy, policy_names
from agentrt.scheduling.surroundings import Surroundings
from agentrt.simulation.future import Future

__all__ = ["FIXED_TTL_SWEEP", "ORACLES", "best_fixed_ttl", "check_policies", "expand_policies"]

FIXED_TTL_SWEEP = (2, 5, 15, 30, 60, 120)
"""Seconds: the strong baseline is the best of these, chosen for each workload."""

SWEPT = "fixed-ttl"

ORACLES = ("belady", "true-ttl")
"""Policies that know the future: eviction by what is recomputed, and TTL by true return time."""


def expand_policies(text: str, *, oracle: bool = False) -> list[str]:
    """Return the policies of a comma-separated list, each once.

    ``fixed-ttl`` without seconds means the sweep, ``all`` every policy that is registered but the
    oracles; these are added with ``oracle``.

    Raises:
        ConfigError: one is not known, or there is none.
    """
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name.startswith("no-") and names and "=" in names[-1]:
            names[-1] += f",{name}"  # one more switch of the policy before it
        else:
            names += _all() if name == "all" else _one(name)
    return check_policies([*names, *(ORACLES if oracle else ())])


def check_policies(policies: Sequence[str]) -> list[str]:
    """Return the policies without repetition.

    Raises:
        ConfigError: one is not known, or there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in policies if name.strip()))
    if not names:
        raise ConfigError("No policy was named.", remedy="Give at least one, such as fcfs.")
    for name in names:
        make_policy(name, Surroundings(foresight=Future()))
    return names


def _one(name: str) -> list[str]:
    if name == SWEPT:
        return [f"{SWEPT}={seconds}" for seconds in FIXED_TTL_SWEEP]
    return [name] if name else []


def _all() -> list[str]:
    return [spec for name in policy_names() if name not in ORACLES for spec in _one(name)]


def best_fixed_ttl(figures: Sequence[tuple[str, float]]) -> tuple[str, float] | None:
    """Return the fixed TTL with the largest figure and that figure; None if there is none."""
    swept = [pair for pair in figures if pair[0].startswith(f"{SWEPT}=")]
    return max(swept, key=lambda pair: pair[1], default=None)
