"""Small curves and outcomes for the tests of the contention experiment."""

from __future__ import annotations

import json
from pathlib import Path

from agentrt.bench.contention.curves import Curve, Role, Scenario
from agentrt.bench.contention.plan import Plan
from agentrt.bench.contention.results import ALONE, UNCONTENDED, Outcome, RoleOutcome

MIB = 1 << 20

SCENARIO = Scenario(
    "small",
    (Role("high", "tall", "high"), Role("low1", "flat", "low"), Role("low2", "flat", "low")),
    limit=1000 * MIB,
    speed=1.0,
    low_high=300 * MIB,
)
TALL = Curve("tall", ((0.0, 20 * MIB), (0.3, 250 * MIB), (0.5, 60 * MIB), (0.9, 60 * MIB)))
FLAT = Curve("flat", ((0.0, 20 * MIB), (0.2, 300 * MIB), (0.8, 300 * MIB), (1.0, 10 * MIB)))


def small_plan(*policies: str, mib: int = 1000, scale: float = 0.1, runs: int = 1) -> Plan:
    """A plan whose three programs want about 1.15 times the limit for half a second."""
    return Plan(
        scenario=SCENARIO,
        curves={"tall": TALL, "flat": FLAT},
        limit=int(mib * MIB * scale),
        speed=1.0,
        scale=scale,
        policies=policies,
        runs=runs,
    )


def write_curves(directory: Path, *names: str) -> Path:
    """Write small curves under the names of a real scenario's."""
    for name in names:
        samples = [[0.0, 10 * MIB], [1.0, 200 * MIB], [20.0, 200 * MIB], [21.0, 5 * MIB]]
        (directory / f"{name}.json").write_text(json.dumps({"memory_curve": samples}))
    return directory


def role(priority: str, total: float | None) -> RoleOutcome:
    """A role's outcome; None: killed."""
    return RoleOutcome(priority, total is not None, total, latency={"p50": 0.001})


def outcome(policy: str, run: int, high: float | None, *lows: float | None) -> Outcome:
    """A cell with the given completion times."""
    roles = {"high": role("high", high)}
    roles |= {f"low{place}": role("low", low) for place, low in enumerate(lows, 1)}
    ends = [one.total for one in roles.values() if one.total is not None]
    timeline = [(0.0, 5, 5, 5), (0.1, 9, 20, 30)]
    return Outcome(policy, run, roles, max(ends, default=0.0), 64, {"load": 0.5}, timeline)


def bases(run: int, high: float = 2.0, low: float = 2.0, together: float = 2.5) -> list[Outcome]:
    """The cells that a round's ratios are taken against."""
    single = [outcome(ALONE + "high", run, high)]
    for name in ("low1", "low2"):
        single.append(Outcome(ALONE + name, run, {name: role("low", low)}, low))
    return [*single, outcome(UNCONTENDED, run, high, together, together)]
