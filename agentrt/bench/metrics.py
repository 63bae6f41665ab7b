"""One run's figures, from its records alone. Seconds, tokens, shares; every run has every key.

A percentile is interpolated linearly between the two nearest values (what numpy does by default).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from agentrt.bench.eviction import least_prefilled
from agentrt.bench.records import KVSample, ProgramRecord, RunRecord, TurnRecord
from agentrt.bench.results import Metrics
from agentrt.bench.service import service_figures
from agentrt.scheduling.plan import PinOutcome

__all__ = ["average", "measure", "percentile"]

ENDED = ("finished", "resolved", "unresolved")
"""Outcomes whose completion time counts: the program played all of its turns."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which ``share`` (0 to 1) of ``values`` lie; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None if there are no values."""
    return math.fsum(values) / len(values) if values else None


def measure(record: RunRecord, isolated: Mapping[str, float] | None = None) -> Metrics:
    """Return a run's figures.

    Args:
        record: the run.
        isolated: seconds that each program takes with the engine to itself, for the slowdown.

    ``prefix_hit_share`` is cached tokens over those that an infinite cache would have found;
    ``kept_ratio`` is prefilled tokens over the least for these turns here (``eviction.py``).
    ``wait_seconds`` splits ``jct_mean`` by what programs did meanwhile.
    """
    ended = [program for program in record.programs if program.outcome in ENDED]
    completion = [program.finished - program.arrival for program in ended]
    figures: Metrics = {
        "programs": dict(sorted(Counter(row.outcome for row in record.programs).items())),
        "turns": len(record.turns),
        "jct_mean": mean(completion),
        **_percentiles("jct", completion, (50, 90, 99)),
        **_rates(record.programs, ended),
        **_first_tokens(record.turns),
        "longest_wait": max((turn.queue_seconds for turn in record.turns), default=0.0),
        **_tokens(record.turns),
        **_kept(record),
        "preemptions": sum(turn.preemptions for turn in record.turns),
        "pins": _pins(record),
        "wait_seconds": _wait(record, ended),
        "kv": _occupancy(record.kv, record.pool_tokens),
    }
    slowdowns = _slowdowns(ended, isolated or {})
    return figures | _slowdown(slowdowns) | service_figures(record, slowdowns)


def _percentiles(name: str, values: Sequence[float], shares: Iterable[int]) -> Metrics:
    return {f"{name}_p{share}": percentile(values, share / 100) for share in shares}


def _rates(programs: Sequence[ProgramRecord], ended: Sequence[ProgramRecord]) -> Metrics:
    """Makespan runs from the first arrival to the last end."""
    if not programs:
        return {"makespan": 0.0, "programs_per_hour": 0.0}
    start = min(program.arrival for program in programs)
    makespan = max(program.finished for program in programs) - start
    rate = 3600 * len(ended) / makespan if makespan > 0 else 0.0
    return {"makespan": makespan, "programs_per_hour": rate}


def _first_tokens(turns: Sequence[TurnRecord]) -> Metrics:
    """Time to first token: of a context's first turn, and of turns that return to one."""

    def waits(wanted: Callable[[TurnRecord], bool]) -> list[float]:
        return [
            turn.first_token - turn.submitted
            for turn in turns
            if turn.first_token is not None and wanted(turn)
        ]

    return {
        **_percentiles("ttft_first", waits(lambda turn: turn.first), (50, 99)),
        **_percentiles("ttft_return", waits(lambda turn: not turn.first), (50, 99)),
    }


def _tokens(turns: Sequence[TurnRecord]) -> Metrics:
    prompt = sum(turn.prompt_tokens for turn in turns)
    ideal = sum(turn.ideal_tokens for turn in turns)
    hits = sum(turn.cached_tokens for turn in turns)
    prefilled = sum(turn.prefilled_tokens for turn in turns)
    return {
        "prompt_tokens": prompt,
        "output_tokens": sum(turn.output_tokens for turn in turns),
        "prefilled_tokens": prefilled,
        "ideal_tokens": ideal,
        "prefill_ratio": prefilled / ideal if ideal else None,
        "prefix_hit_tokens": hits,
        "prefix_hit_share": hits / (prompt - ideal) if prompt > ideal else None,
    }


def _kept(record: RunRecord) -> Metrics:
    least = least_prefilled(record.turns, record.pool_tokens)
    prefilled = sum(turn.prefilled_tokens for turn in record.turns)
    return {"least_prefilled_tokens": least, "kept_ratio": prefilled / least if least else None}


def _pins(record: RunRecord) -> dict[str, int]:
    counts = Counter(pin.outcome for pin in record.pins)
    return {outcome: counts[outcome] for outcome in get_args(PinOutcome)}


def _wait(record: RunRecord, ended: Sequence[ProgramRecord]) -> dict[str, float]:
    """Mean seconds a completed program spent in each state; ``other`` is what no record covers."""
    names = {program.program for program in ended}
    turns = [turn for turn in record.turns if turn.program in names]
    count = max(1, len(ended))
    split = {
        "queue": math.fsum(turn.queue_seconds for turn in turns) / count,
        "prefill": math.fsum(turn.prefill_seconds for turn in turns) / count,
        "decode": math.fsum(turn.decode_seconds for turn in turns) / count,
        "tool": math.fsum(row.end - row.start for row in record.tools if row.program in names)
        / count,
    }
    total = math.fsum(program.finished - program.arrival for program in ended) / count
    left = total - math.fsum(split.values())
    # Rounding of sums of thousands of float times is not a state that a program was in.
    split["other"] = left if abs(left) > 1e-6 * max(1.0, total) else 0.0
    return split


def _occupancy(samples: Sequence[KVSample], pool: int) -> dict[str, float | None]:
    """Shares of the pool: in use by leases (pins included), and by pins alone."""
    leased = [sample.leased / pool for sample in samples]
    pinned = [sample.pinned / pool for sample in samples]
    return {
        "leased_mean": _held_mean(samples, leased),
        "leased_max": max(leased, default=None),
        "pinned_mean": _held_mean(samples, pinned),
        "pinned_max": max(pinned, default=None),
    }


def _held_mean(samples: Sequence[KVSample], values: Sequence[float]) -> float | None:
    """Mean over time: each sample counts until the next one."""
    if len(samples) < 2:
        return mean(values)
    times = [sample.time for sample in samples]
    held = [later - sooner for sooner, later in pairwise(times)]
    if not sum(held) > 0:
        return mean(values)
    return math.fsum(value * span for value, span in zip(values, held, strict=False)) / sum(held)


def _slowdowns(ended: Sequence[ProgramRecord], isolated: Mapping[str, float]) -> list[float]:
    """Completion times over those alone; without the programs whose time alone is not known."""
    return [
        (program.finished - program.arrival) / isolated[program.program]
        for program in ended
        if isolated.get(program.program, 0.0) > 0
    ]


def _slowdown(ratios: Sequence[float]) -> Metrics:
    if not ratios:
        return {}
    return {"slowdown_mean": mean(ratios), **_percentiles("slowdown", ratios, (50, 90, 99))}


def average(runs: Sequence[Metrics]) -> Metrics:
    """Return the mean of every figure over runs of several seeds; one run is returned as it is.

    A figure that a run lacks (None) is averaged over the others; a missing count counts as 0.
    """
    if len(runs) == 1:
        return dict(runs[0])
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key: _average_value([run.get(key) for run in runs]) for key in keys}


def _average_value(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if isinstance(known[0], dict):
        keys = dict.fromkeys(key for value in known for key in value)
        return {key: _average_value([value.get(key, 0) for value in known]) for key in keys}
    return mean(known)
