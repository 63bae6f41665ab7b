"""The contention experiment: three agents replay their memory under one limit, policy by policy.

One program of high priority and two of low priority hold memory along recorded curves. Their sum
does not always fit, so a policy decides who waits, who is slowed down and who is killed. This
package makes the cgroups, runs the replays, measures and compares; it knows the controller of
``agentrt.resources`` as one policy among others.
"""

from agentrt.bench.contention.curves import (
    SCENARIOS,
    Curve,
    Role,
    Scenario,
    default_curves,
    load_curve,
    scenario_named,
)
from agentrt.bench.contention.experiment import Experiment
from agentrt.bench.contention.plan import Plan
from agentrt.bench.contention.policies import POLICIES, policy_names
from agentrt.bench.contention.results import Outcome, summarise

__all__ = [
    "POLICIES",
    "SCENARIOS",
    "Curve",
    "Experiment",
    "Outcome",
    "Plan",
    "Role",
    "Scenario",
    "default_curves",
    "load_curve",
    "policy_names",
    "scenario_named",
    "summarise",
]
