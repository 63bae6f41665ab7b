"""SAGA: workflow-atomic scheduling by agent execution graphs.

Source: arXiv 2605.00528 (HPDC'26). Its parts:

- execution graphs in three tiers of knowledge, declared, inferred and cold: ``graph.py``;
- workflow-aware LRU eviction: ``saga_eviction.py``;
- tool TTL under memory pressure: ``saga_ttl.py``;
- agent fair share across tenants, with preemption: ``saga_share.py``;
- session affinity and work stealing: the placement ``saga`` of :mod:`agentrt.cluster.registry`.

Above 0.9 of the pool the paper evicts hard: the head of the queue may break pins. Its prefetch of
the likeliest successor's KV is not here: without a host tier there is nothing to fetch, and with
one a reload costs less than the guess. Tier (c) treats tasks of an unknown kind request by request:
the cold forecast is the same constant for all of them.

Known defects: the paper's 64-GPU figures are simulated, and its published code falls back to
emitting the paper's numbers; the independent single-GPU runs of a subset were worse than FCFS
(TTLs from raw tool times, 369 ms of policy work a request). P95 of a tool *type* is far below the
queueing delays at which keeping KV pays, so pins end too soon under load, just when the pressure
clamp halves them. Within one tenant AFS orders nothing.
"""

from __future__ import annotations

from agentrt.scheduling.graph import ExecutionGraphs
from agentrt.scheduling.graph_listener import DeclaredSteps
from agentrt.scheduling.policies.saga_eviction import WorkflowRetention
from agentrt.scheduling.policies.saga_share import FairShares
from agentrt.scheduling.policy import Policy, by_program
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["saga"]


def saga(around: Surroundings) -> Policy:
    """Return ``saga``."""
    graphs = ExecutionGraphs()
    retention = WorkflowRetention(graphs)
    shares = FairShares(graphs, around.prefill_seconds)
    return Policy(
        "saga",
        by_program,
        retention,
        pin_break="head",
        preempts=shares.preempts,
        groups=shares,
        listeners=(retention.clock, DeclaredSteps(graphs), shares),
    )
