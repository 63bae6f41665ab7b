"""Policies by name: ``fcfs``, ``program-fcfs``, ``fixed-ttl=30``, ``continuum``, and plug-ins.

A plug-in is an entry point of the group ``agentrt.policies``: a callable that takes the argument
after ``=`` (or ``None``) and a :class:`Surroundings`, and returns a :class:`Policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from agentrt.errors import ConfigError
from agentrt.scheduling.continuum import continuum
from agentrt.scheduling.fairness import by_tenants
from agentrt.scheduling.fixed_ttl import fixed_ttl
from agentrt.scheduling.policies.agentrt import agentrt
from agentrt.scheduling.policies.baselines import fcfs, program_fcfs, return_first
from agentrt.scheduling.policies.infercept import infercept
from agentrt.scheduling.policies.justitia import justitia
from agentrt.scheduling.policies.length_aware import length_aware
from agentrt.scheduling.policies.oracles import belady, true_ttl
from agentrt.scheduling.policies.past_future import past_future
from agentrt.scheduling.policies.plas import plas
from agentrt.scheduling.policies.saga import saga
from agentrt.scheduling.policies.slo import slo
from agentrt.scheduling.policies.thunder import thunder
from agentrt.scheduling.policies.uwfq import uwfq
from agentrt.scheduling.policies.vtc import vtc
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["PolicyFactory", "find_factory", "make_policy", "policy_names"]

PolicyFactory: TypeAlias = Callable[[str | None, Surroundings], Policy]
"""Makes a policy from the argument after ``=``, if there is one."""


def _plain(make: Callable[[Surroundings], Policy]) -> PolicyFactory:
    """Return the factory of a policy that takes no argument."""

    def factory(argument: str | None, around: Surroundings) -> Policy:
        policy = make(around)
        if argument is not None:
            raise ConfigError(
                f"The policy {policy.name} takes no argument, but {argument!r} was given.",
                remedy=f"Write it as {policy.name}.",
            )
        return policy

    return factory


def _fair(argument: str | None, around: Surroundings) -> Policy:
    """Return another policy with fair shares of tenants above its order."""
    inner = make_policy(argument or "fixed-ttl=30", around)
    return replace(by_tenants(inner, around.tenants), name=f"fair={inner.name}")


BUILTIN: dict[str, PolicyFactory] = {
    "agentrt": agentrt,
    "belady": _plain(belady),
    "continuum": _plain(continuum),
    "fair": _fair,
    "fcfs": _plain(fcfs),
    "fixed-ttl": fixed_ttl,
    "infercept": _plain(infercept),
    "justitia": _plain(justitia),
    "length-aware": _plain(length_aware),
    "past-future": _plain(past_future),
    "plas": _plain(plas),
    "program-fcfs": _plain(program_fcfs),
    "return-first": _plain(return_first),
    "saga": _plain(saga),
    "slo": _plain(slo),
    "thunder": _plain(thunder),
    "true-ttl": _plain(true_ttl),
    "uwfq": _plain(uwfq),
    "vtc": _plain(vtc),
}
"""One row a policy, by name. A factory without an argument takes the surroundings alone."""


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="agentrt.policies")}


def policy_names() -> list[str]:
    """Return the names that ``make_policy`` knows, without arguments."""
    return sorted(_plugins().keys() | BUILTIN.keys())


def find_factory(name: str) -> PolicyFactory:
    """Return what makes the policies of a name.

    Raises:
        ConfigError: no policy has this name.
    """
    builtin = BUILTIN.get(name)
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
    factory = find_factory(name)
    return factory(argument if has_argument else None, surroundings or Surroundings())
