"""The scheduling core: who runs next, what KV stays, who may start.

Pure: no torch, no clock, no files, no threads. It must not know the engine; the page cache that it
drives is handed in.
"""

from agentrt.scheduling.cost import OnlinePrefillCost
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.registry import make_policy, policy_names
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.surroundings import Surroundings

__all__ = [
    "OnlinePrefillCost",
    "Policy",
    "Scheduler",
    "SchedulerConfig",
    "Surroundings",
    "make_policy",
    "policy_names",
]
