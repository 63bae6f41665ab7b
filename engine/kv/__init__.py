"""Where the KV cache's pages are: pool, prefix tree, leases. Pure; no tensors, no clock."""

from agentrt.engine.kv.leases import CacheStatistics, Lease, PageCache
from agentrt.engine.kv.prefix import EvictionScore, Node

__all__ = ["CacheStatistics", "EvictionScore", "Lease", "Node", "PageCache"]
