"""Pages of KV outside the pool: in host memory, copied by a thread of its own.

What is copied when is the scheduler's decision; here it is only carried out. Knows nothing of
turns. The tier itself, which needs torch, is ``agentrt.engine.tiers.host.HostTier``.
"""

from agentrt.engine.tiers.base import CopyDone, PageMover, TierStatistics
from agentrt.engine.tiers.groups import CopyGroup, copy_groups

__all__ = ["CopyDone", "CopyGroup", "PageMover", "TierStatistics", "copy_groups"]
