"""Policies by name: ``fcfs``, ``program-fcfs``, ``fixed-ttl=30``, ``continuum``, and plug-ins.

A plug-in is an entry point of the group ``agentrt.policies``: a callable that takes the argument
after ``=`` (or ``None``) and a :class:`Surroundings`, and returns a :class:`Policy`.
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
    by_arrival,
    by_program,
    lru_score,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["PolicyFactory", "make_policy", "policy_names"]

PolicyFactory: TypeAlias = Callable[[str | None, Surroundings], Policy]


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
        "continuum": lambda argument, around: _plain(continuum(around.prefill_seconds), argument),
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


def make_policy(spec: str, surroundings: Surroundings | None = None) -> Policy:
    """Make a policy from ``NAME`` or ``NAME=ARGUMENT``.

    Args:
        spec: for example ``fcfs`` or ``fixed-ttl=30``.
        surroundings: the engine that it works for; None: nothing is known of it.

    Raises:
        ConfigError: no policy has this name, or the argument is wrong.
    """
    name, has_argument, argument = spec.strip().partition("=")
    factory = _factory(name)
    return factory(argument if has_argument else None, surroundings or Surroundings())
