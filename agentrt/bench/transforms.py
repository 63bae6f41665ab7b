"""Other workloads from a given one: gaps scaled or redrawn, turns split, hints given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from agentrt.bench.workload import Program, Turn, Workload

__all__ = [
    "redraw_gaps",
    "scale_gaps",
    "split_turns",
    "transformed",
    "with_deadlines",
    "with_told_turns",
]

GAP_SEED = 20_261_125
"""Redrawn gaps are part of the workload: the same for every policy and every arrival seed."""


def transformed(
    workload: Workload, *, gap_scale: float = 1.0, gap_cv: float | None = None, turns: int = 1
) -> Workload:
    """Return the workload with its turns split, then its gaps redrawn, then scaled."""
    if turns != 1:
        workload = split_turns(workload, turns)
    if gap_cv is not None:
        workload = redraw_gaps(workload, gap_cv)
    return workload if gap_scale == 1.0 else scale_gaps(workload, gap_scale)


def scale_gaps(workload: Workload, factor: float) -> Workload:
    """Multiply every gap by ``factor``."""
    return _each_turn(workload, lambda turn: _with_gap(turn, (turn.gap or 0.0) * factor))


def redraw_gaps(workload: Workload, cv: float, seed: int = GAP_SEED) -> Workload:
    """Draw every gap anew, log-normal with coefficient of variation ``cv`` at the same mean.

    The drawn gaps are scaled by one factor so that their mean is exactly the recorded one.
    """
    gaps = [turn.gap for row in workload.programs for turn in row.turns if turn.gap is not None]
    source, sigma = random.Random(seed), math.sqrt(math.log1p(cv * cv))
    drawn = [source.lognormvariate(0.0, sigma) for _ in gaps]
    factor = math.fsum(gaps) / math.fsum(drawn) if gaps else 0.0
    fresh = iter(drawn)
    return _each_turn(
        workload,
        lambda turn: turn if turn.gap is None else _with_gap(turn, next(fresh) * factor),
    )


def _with_gap(turn: Turn, gap: float) -> Turn:
    return turn if turn.gap is None else replace(turn, gap=gap)


def _each_turn(workload: Workload, change: Callable[[Turn], Turn]) -> Workload:
    rows = (replace(row, turns=tuple(map(change, row.turns))) for row in workload.programs)
    return replace(workload, programs=tuple(rows))


def split_turns(workload: Workload, factor: int) -> Workload:
    """Split every turn into ``factor`` turns that share its new tokens and its output.

    Each part is followed by the turn's gap: as many more tool calls, and the same tokens in all. A
    turn with too few tokens is split into fewer parts. Texts and blocks, which cannot be split
    alike, are left out.
    """
    rows = (replace(row, turns=_split(row, factor)) for row in workload.programs)
    return replace(workload, programs=tuple(rows))


def _split(program: Program, factor: int) -> tuple[Turn, ...]:
    parts: list[Turn] = []
    last: list[int] = []  # where the last part of each turn stands
    for turn in program.turns:
        first, *others = _parts(turn, factor)
        if turn.after is not None:
            first = replace(first, after=tuple(last[place] for place in turn.after))
            others = [replace(part, after=None) for part in others]
        parts += [first, *others]
        last.append(len(parts) - 1)
    return tuple(parts)


def _parts(turn: Turn, factor: int) -> Iterator[Turn]:
    new = turn.prompt_tokens - turn.reused_tokens
    count = max(1, min(factor, new, turn.output_tokens))
    held = turn.reused_tokens
    for at in range(count):
        prompt = held + _share(new, at, count)
        output = _share(turn.output_tokens, at, count)
        yield replace(
            turn,
            prompt_tokens=prompt,
            reused_tokens=held,
            output_tokens=output,
            gap=turn.gap if at == count - 1 or turn.gap is not None else 0.0,
            blocks=(),
            block_tokens=0,
            messages=(),
            output=None,
        )
        held = prompt + output


def _share(total: int, at: int, count: int) -> int:
    return total * (at + 1) // count - total * at // count


def with_deadlines(workload: Workload, isolated: Mapping[str, float], factor: float) -> Workload:
    """Give every program ``factor`` times its seconds alone, counted from its arrival."""
    rows = (replace(row, deadline=factor * isolated[row.program]) for row in workload.programs)
    return replace(workload, programs=tuple(rows))


def with_told_turns(workload: Workload) -> Workload:
    """Let every program say with each turn how many it has left."""
    rows = (replace(row, tells_turns=True) for row in workload.programs)
    return replace(workload, programs=tuple(rows))
