"""Bounds of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentrt.errors import ConfigError

__all__ = ["SchedulerConfig"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds of the scheduler.

    Args:
        token_budget: tokens a step computes at most; decodes first.
        max_seqs: turns that run at the same time at most; below ``token_budget``.
        max_wait: seconds after which a waiting turn outranks pins and every younger turn.
        max_waiting: turns that may wait; one more is refused.
        reserve: ``output`` holds pages for prompt and longest output from the start, so a turn that
            runs is never preempted; ``prompt`` takes pages as they are needed and preempts.
        pin_share: share of the pool that pins may hold, 0 to 1.
        newcomer_share: share of a step's tokens that prefills under way leave to the head of the
            queue, where that suffices for it, 0 to 1; 0 lets what has started go first.
    """

    token_budget: int = 2048
    max_seqs: int = 64
    max_wait: float = 600.0
    max_waiting: int = 10_000
    reserve: Literal["prompt", "output"] = "prompt"
    pin_share: float = 0.9
    newcomer_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_seqs < self.token_budget:
            raise ConfigError(
                f"max_seqs is {self.max_seqs} and the token budget {self.token_budget}.",
                remedy="Make max_seqs at least 1 and the token budget larger than max_seqs.",
            )
        if not 0 <= self.newcomer_share <= 1:
            raise ConfigError(
                f"newcomer_share is {self.newcomer_share}.", remedy="Use a number from 0 to 1."
            )
        if self.max_wait < 0 or self.max_waiting < 1 or not 0 <= self.pin_share <= 1:
            raise ConfigError(
                f"max_wait={self.max_wait}, max_waiting={self.max_waiting}, "
                f"pin_share={self.pin_share} are not all in range.",
                remedy="Use max_wait >= 0, max_waiting >= 1 and 0 <= pin_share <= 1.",
            )
