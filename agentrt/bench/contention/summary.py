"""``results.json``: figures, what they depend on, and what this machine changes about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentrt.bench.contention.plan import Plan
from agentrt.bench.contention.policies import explain
from agentrt.bench.contention.results import ALONE, UNCONTENDED, Outcome, summarise
from agentrt.resources.cgroup import Layout

__all__ = ["changes", "results_json"]

CHANGES: Mapping[str, str] = {
    "v2": "Cgroup v2: memory.max on the parent, no swap; every policy works as described.",
    "hybrid": (
        "Hybrid cgroups: the parent's limit is memory.limit_in_bytes of v1, with hierarchy and "
        "without swap; freezing and PSI go through the v2 tree. There is no memory.high, "
        "memory.low or memory.reclaim, so memory.low+high equals none, and agentrt has no "
        "throttling rung: it freezes instead."
    ),
    "v1": (
        "Cgroup v1 only: limits as on a hybrid machine, and neither PSI nor cgroup.freeze of the "
        "v2 tree: oomd-like goes by use alone."
    ),
    "none": "No cgroups.",
}


def changes(layout: Layout, on_v2: bool) -> str:
    """Say what the machine's cgroups change about the experiment."""
    return CHANGES["v2" if on_v2 else layout.kind]


def results_json(
    plan: Plan, outcomes: Sequence[Outcome], *, layout: Layout, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that is told of the experiment; ``about``: command, machine, created."""
    on_v2 = layout.v1("memory") is None
    found = summarise(outcomes, plan.policies)
    return {
        "scenario": plan.scenario.name,
        "roles": {role.name: role.curve for role in plan.roles},
        "limit": plan.limit,
        "speed": plan.speed,
        "scale": plan.scale,
        "runs": plan.runs,
        "cgroups": layout.kind,
        "changes": changes(layout, on_v2),
        "complete": all(found.get(name, {}).get("n") == plan.runs for name in plan.policies),
        "notes": {name: explain(name, on_v2) for name in plan.policies},
        "policies": found,
        "alone": _seconds(plan, outcomes, ALONE + "{}"),
        "uncontended": _seconds(plan, outcomes, UNCONTENDED),
        **about,
    }


def _seconds(plan: Plan, outcomes: Sequence[Outcome], cell: str) -> dict[str, list[float | None]]:
    """Seconds of each role in the cells that others are compared with, run by run."""
    return {
        role.name: [
            one.roles[role.name].total for one in outcomes if one.policy == cell.format(role.name)
        ]
        for role in plan.roles
    }
