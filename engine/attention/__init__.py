"""Attention over paged keys and values: the protocol and its torch implementation.

It must not know requests, sampling or scheduling policy: it is given positions and page tables.
"""

from agentrt.engine.attention.base import Attention, AttentionStep, BatchLayout, SliceLayout
from agentrt.engine.attention.torch_paged import TorchPagedAttention

__all__ = ["Attention", "AttentionStep", "BatchLayout", "SliceLayout", "TorchPagedAttention"]
