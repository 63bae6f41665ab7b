"""The least that had to be prefilled: a run's turns as they were, and evictions that know them all.

When each turn started and ended is taken from the record. Between turns a context's KV may stay,
as far as the pool has room beside what running turns hold. Who comes back last gives way first
(Belady, 1966): of KV that is used whole each time that is the least recomputed for these turns,
whatever decides otherwise. A policy that orders turns better has another bound, so this tells how
well a run *kept*, and not how well it ran.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentrt.bench.records import TurnRecord

__all__ = ["least_prefilled", "working_set"]

_Context: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Use:
    """One turn's place in time. ``next_start`` is when its context's KV is used again."""

    context: _Context
    start: float
    end: float
    reused: int
    holds: int
    next_start: float
    prompt: int


class _Pool:
    """What contexts that are away hold, beside what running turns hold."""

    def __init__(self, tokens: int) -> None:
        self._free = tokens
        self._kept: dict[_Context, tuple[int, float]] = {}
        self._last_back: list[tuple[float, _Context]] = []

    def start(self, use: _Use) -> int:
        """Begin a turn; return the tokens of its prompt that are still there."""
        kept, _ = self._kept.pop(use.context, (0, 0.0))
        self._free += kept - use.holds
        self._evict()
        return min(kept, use.reused)

    def end(self, use: _Use) -> None:
        """Keep what a turn held if it is used again."""
        if use.next_start == math.inf:
            self._free += use.holds
            return
        self._kept[use.context] = (use.holds, use.next_start)
        heapq.heappush(self._last_back, (-use.next_start, use.context))

    def _evict(self) -> None:
        """Let go of tokens, of the context first that is back last, until running turns fit."""
        while self._free < 0 and self._last_back:
            back, context = self._last_back[0]
            held, known = self._kept.get(context, (0, 0.0))
            if known != -back or not held:
                heapq.heappop(self._last_back)  # it has been back since
                continue
            given = min(held, -self._free)
            self._free += given
            self._kept[context] = (held - given, known)


def least_prefilled(turns: Sequence[TurnRecord], pool_tokens: int) -> int | None:
    """Return the tokens that must be prefilled for these turns in a pool of that size.

    Turns that never started are left out. None if a turn found what its own context had not held,
    as where programs share what they prompt: then this is no bound.
    """
    lines = _lines(turns)
    if not all(map(_reuses_its_own, lines)):
        return None
    uses = [use for line in lines for use in line]
    events = [(use.end, 0, at) for at, use in enumerate(uses)]
    events += [(use.start, 1, at) for at, use in enumerate(uses)]
    pool, prefilled = _Pool(pool_tokens), 0
    for _, starts, at in sorted(events):
        if starts:
            prefilled += uses[at].prompt - pool.start(uses[at])
        else:
            pool.end(uses[at])
    return prefilled


def _reuses_its_own(line: Sequence[_Use]) -> bool:
    before = [0, *(use.holds for use in line)]
    return all(use.reused <= held for use, held in zip(line, before, strict=False))


def working_set(turns: Sequence[TurnRecord]) -> int:
    """Return the most tokens that contexts held at a moment, from first turn to last.

    Of a run that never had to let go of any, this is the pool that it needed.
    """
    changes: list[tuple[float, int]] = []
    for line in _lines(turns):
        for use in line:
            gone = use.end if use.next_start == math.inf else use.next_start
            changes += [(use.start, use.holds), (gone, -use.holds)]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def _lines(turns: Sequence[TurnRecord]) -> list[list[_Use]]:
    """Return each context's turns in order; those of one context do not overlap."""
    lines: dict[_Context, list[TurnRecord]] = defaultdict(list)
    for turn in turns:
        if turn.admitted is not None:
            lines[turn.program, turn.context].append(turn)
    return [_line(context, line) for context, line in lines.items()]


def _line(context: _Context, line: list[TurnRecord]) -> list[_Use]:
    line.sort(key=lambda turn: turn.finished)
    later = [*map(_started, line[1:]), math.inf]
    return [_use(context, turn, back) for turn, back in zip(line, later, strict=True)]


def _started(turn: TurnRecord) -> float:
    """Return when a turn began to run for the last time."""
    return max(turn.submitted, turn.finished - turn.decode_seconds - turn.prefill_seconds)


def _use(context: _Context, turn: TurnRecord, next_start: float) -> _Use:
    return _Use(
        context,
        _started(turn),
        turn.finished,
        reused=turn.prompt_tokens - turn.ideal_tokens,
        holds=turn.prompt_tokens + turn.output_tokens,
        next_start=max(next_start, turn.finished),
        prompt=turn.prompt_tokens,
    )
