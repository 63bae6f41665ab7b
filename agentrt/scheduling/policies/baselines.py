"""What servers do that know nothing of programs, and the least that one can know of them."""

from __future__ import annotations

from typing import Any

from agentrt.scheduling.policy import (
    KeepNothing,
    Policy,
    TurnView,
    by_arrival,
    by_program,
    lru_score,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["fcfs", "program_fcfs", "return_first", "returning_first"]


def fcfs(around: Surroundings) -> Policy:
    """Return ``fcfs``: turns in order of arrival, least recently used KV evicted first.

    This is what vLLM with prefix caching does.
    """
    return Policy("fcfs", by_arrival, KeepNothing(lru_score))


def program_fcfs(around: Surroundings) -> Policy:
    """Return ``program-fcfs``: turns by the arrival of their program, ended programs' KV first."""
    return Policy("program-fcfs", by_program, KeepNothing(program_score))


def returning_first(turn: TurnView) -> tuple[Any, ...]:
    """Order preempted turns, then turns of programs that have had one, then by arrival."""
    return (turn.preemptions == 0, turn.program_turns == 0, turn.submitted, turn.sequence)


def return_first(around: Surroundings) -> Policy:
    """Return ``return-first``: returning turns before the first turns of programs, and LRU.

    Source: the "native priority" baseline of the independent runs (HCAHOI/agent-sched-bench): a
    server's request priority, 1 for a program's first request and 0 for one that follows a tool. A
    sub-agent's first turn counts as returning, since its program is under way. Known defect: first
    turns starve while enough programs return; only ``max_wait`` bounds that here.
    """
    return Policy("return-first", returning_first, KeepNothing(lru_score))
