"""What an experiment is made of: who runs, in how much memory, how fast, under which policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrt.bench.contention.curves import BASE, MIB, Curve, Role, Scenario
from agentrt.bench.contention.policies import Setting

__all__ = ["Plan", "scaled_limit"]

INTERPRETER = 6 * MIB
"""What a replay's interpreter uses beside what it holds, in bytes."""
SLACK = 1.01
"""Factor on what a replay declares: its page tables, and nobody knows his peak to the byte."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the figures depend on. ``limit`` in bytes, already scaled."""

    scenario: Scenario
    curves: Mapping[str, Curve]
    limit: int
    speed: float
    scale: float
    policies: tuple[str, ...]
    runs: int

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles, high priority first."""
        return self.scenario.roles

    def setting(self) -> Setting:
        """What a policy is told."""
        held = {name: curve.scaled(self.scale).peak for name, curve in self.curves.items()}
        return Setting(
            scenario=self.scenario,
            limit=self.limit,
            speed=self.speed,
            scale=self.scale,
            peaks={
                role.name: int(SLACK * (held[role.curve] + BASE * self.scale)) + INTERPRETER
                for role in self.roles
            },
        )

    def alone(self, role: Role) -> Plan:
        """The same with one role and nobody beside it."""
        scenario = dataclasses.replace(self.scenario, roles=(role,))
        return dataclasses.replace(self, scenario=scenario)

    def uncontended(self) -> Plan:
        """The same with memory for all, so that they share nothing but the CPUs."""
        return dataclasses.replace(self, limit=2 * sum(self.setting().peaks.values()))

    def to_json(self) -> dict[str, Any]:
        """Return what a kept run must agree with to be used again."""
        return {
            "format": 3,
            "scenario": dataclasses.asdict(self.scenario),
            "limit": self.limit,
            "speed": self.speed,
            "scale": self.scale,
            "curves": {name: curve.samples for name, curve in sorted(self.curves.items())},
        }


def scaled_limit(limit: int, scale: float, replays: int) -> int:
    """The limit at a scale: what the interpreters use of it does not shrink with the rest."""
    fixed = replays * INTERPRETER
    return int(scale * max(0, limit - fixed) + fixed) if scale != 1 else limit
