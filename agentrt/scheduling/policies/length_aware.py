"""Length-aware prefill: short prefills go before long ones.

Source: LAPS (PLA-Serve, arXiv 2601.11589, MLSys'26): two prefill queues; prompts of at most 256 new
tokens are short, which most of an agent's later turns are. Here the queue of turns and the order in
which started prefills share a step's tokens both put the short ones first; within each, first come,
first served; eviction by LRU.

Left open: a waiting turn counts as short by the tokens that its context has not had; whether those
it has had are still cached is only known when it starts, and the second order goes by that. The
paper's waiting for full CUDA-graph buckets has no counterpart in a step that mixes prefills and
decodes.

Known defect: long prompts, that is first turns and contexts that were evicted, wait for as long as
short ones keep coming; only ``max_wait`` bounds that here.
"""

from __future__ import annotations

from typing import Any

from agentrt.scheduling.policy import KeepNothing, Policy, TurnView, lru_score
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["SHORT_TOKENS", "length_aware", "short_first", "short_prefill_first"]

SHORT_TOKENS = 256


def short_first(turn: TurnView) -> tuple[Any, ...]:
    """Order preempted turns, then those that add at most 256 tokens to what their context had."""
    had = turn.state.length if turn.state.length < turn.length else 0
    return (turn.preemptions == 0, turn.length - had > SHORT_TOKENS, turn.submitted, turn.sequence)


def short_prefill_first(turn: TurnView) -> tuple[Any, ...]:
    """Order started prefills by whether at most 256 tokens are left, then by arrival."""
    return (turn.length - turn.computed > SHORT_TOKENS, turn.submitted, turn.sequence)


def length_aware(around: Surroundings) -> Policy:
    """Return ``length-aware``."""
    return Policy(
        "length-aware", short_first, KeepNothing(lru_score), prefill_order=short_prefill_first
    )
