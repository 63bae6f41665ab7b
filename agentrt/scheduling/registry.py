"""Policies by name: ``fcfs``, ``program-fcfs``, ``fixed-ttl=30``, ``continuum``, and plug-ins.

A plug-in is an entry point of the group ``agentrt.policies``: a callable that takes the argument
after ``=`` (or ``None``) and the prefill cost, and returns a :class:`Policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from agentrt.errors import ConfigError
from agentrt.scheduling.continuum import continuum
from agentrt.scheduling.fixed_ttl import fixed_ttl
from agentrt.scheduling.policy import (
    KeepNothing,
    Policy,
    PrefillSeconds,
    by_arrival,
    by_program,
    lru_score,
    program_score,
)

__all__ = ["PolicyFactory", "make_policy", "policy_names"]

PolicyFactory: TypeAlias = Callable[[str | None, PrefillSeconds], Policy]

DEFAULT_PREFILL_SECONDS_PER_TOKEN = 0.0002


def _default_cost(tokens: int) -> float:
    return DEFAULT_PREFILL_SECONDS_PER_TOKEN * tokens


def _plain(policy: Policy, argument: str | None) -> Policy:
    if argument is not None:
        raise ConfigError(
            f"The policy {policy.name} takes no argument, but {argument!r} was given.",
            remedy=f"Write it as {policy.name}.",
        )
    return policy


def _builtin() -> dict[str, PolicyFactory]:
    return {
        "fcfs": lambda argument, _: _plain(
            Policy("fcfs", by_arrival, KeepNothing(lru_score)), argument
        ),
        "program-fcfs": lambda argument, _: _plain(
            Policy("program-fcfs", by_program, KeepNothing(program_score)), argument
        ),
        "fixed-ttl": lambda argument, _: fixed_ttl(argument),
        "continuum": lambda argument, cost: _plain(continuum(cost), argument),
    }


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="agentrt.policies")}


def policy_names() -> list[str]:
    """Return the names that ``make_policy`` knows, without arguments."""
    return sorted(_plugins().keys() | _builtin().keys())


def _factory(name: str) -> PolicyFactory:
    builtin = _builtin().get(name)
    if builtin is not None:
        return builtin
    plugin = _plugins().get(name)
    if plugin is None:
        raise ConfigError(
            f"There is no policy named {name!r}.",
            remedy=f"Choose one of: {', '.join(policy_names())}.",
        )
    factory: PolicyFactory = plugin.load()
    return factory


def make_policy(spec: str, *, prefill_seconds: PrefillSeconds = _default_cost) -> Policy:
    """Make a policy from ``NAME`` or ``NAME=ARGUMENT``.

    Args:
        spec: for example ``fcfs`` or ``fixed-ttl=30``.
        prefill_seconds: what recomputing so many tokens costs on this engine, in seconds.

    Raises:
        ConfigError: no policy has this name, or the argument is wrong.
    """
    name, has_argument, argument = spec.strip().partition("=")
    factory = _factory(name)
    return factory(argument if has_argument else None, prefill_seconds)
