"""How evenly a run served: slowdowns, deadlines, turns that waited too long, tenants' shares."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrt.bench.records import ProgramRecord, RunRecord, TurnRecord

__all__ = ["SLO_FACTORS", "jain_index", "overtaken", "service_figures", "share_errors", "waiting"]

SLO_FACTORS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Multiples of the time alone within which a program may be asked to end."""

STARVED_SECONDS = 1800.0
"""A turn that waits longer is lost to its client: the timeout of the independent measurements."""

WINDOW_SECONDS = 60

OUTPUT_WEIGHT = 2.0
"""An output token counts as two prefilled ones: VTC's weights (OSDI'24)."""


def service_figures(record: RunRecord, slowdowns: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one run; those that need what is not known are absent.

    ``slo`` is the share of all programs that ended within so many times their seconds alone.
    ``deadlines_met`` is the share of programs with a deadline that kept it. ``share_error`` holds
    each weighted tenant's largest and mean error of its share over any 60 s of saturation.
    """
    settings = record.settings
    figures: dict[str, Any] = waiting(record.turns, settings.get("max_wait", "inf"))
    if slowdowns:
        figures["slowdown_jain"] = jain_index(slowdowns)
        figures["slo"] = _attainment(slowdowns, len(record.programs))
    due = [row for row in record.programs if row.deadline is not None]
    if due:
        figures["deadlines_met"] = sum(map(_kept, due)) / len(due)
    weights = settings.get("weights")
    if weights:
        figures["share_error"] = share_errors(record.turns, weights)
    return figures


def _attainment(slowdowns: Sequence[float], programs: int) -> dict[str, float]:
    """A little slack: the sums of a run and of a program alone are rounded apart."""
    within = {
        f"{most:g}": sum(one <= most * (1 + 1e-9) for one in slowdowns) for most in SLO_FACTORS
    }
    return {most: count / programs for most, count in within.items()}


def _kept(row: ProgramRecord) -> bool:
    in_time = row.deadline is not None and row.finished <= row.arrival + row.deadline + 1e-6
    return in_time and row.outcome not in ("failed", "cancelled")


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's index: 1 when all are equal, one over their number when one has everything."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


# --- waiting --------------------------------------------------------------------------------------


def waiting(turns: Sequence[TurnRecord], max_wait: float | str) -> dict[str, int]:
    """Count turns that aged past ``max_wait``, that starved, and that overtook an aged one."""
    bound = math.inf if max_wait == "inf" else float(max_wait)
    aged = [turn for turn in turns if _waited(turn) > bound]
    return {
        "aged_turns": len(aged),
        "starved_turns": sum(_waited(turn) > STARVED_SECONDS for turn in turns),
        "overtaken_aged": overtaken(turns, aged, bound),
    }


def _waited(turn: TurnRecord) -> float:
    start = turn.finished if turn.admitted is None else turn.admitted
    return start - turn.submitted


def overtaken(turns: Sequence[TurnRecord], aged: Sequence[TurnRecord], bound: float) -> int:
    """Count turns that started while one that is older, and had aged by then, still waited."""
    starts = sorted((turn.admitted, turn.submitted) for turn in turns if turn.admitted is not None)
    coming = sorted((turn.submitted + bound, turn.submitted, _end_of_wait(turn)) for turn in aged)
    coming.reverse()
    waits: list[tuple[float, float]] = []  # (submitted, end of the wait) of turns aged by now
    count = 0
    for start, submitted in starts:
        while coming and coming[-1][0] < start:
            heapq.heappush(waits, coming.pop()[1:])
        while waits and waits[0][1] <= start:
            heapq.heappop(waits)
        count += bool(waits) and waits[0][0] < submitted
    return count


def _end_of_wait(turn: TurnRecord) -> float:
    return turn.finished if turn.admitted is None else turn.admitted


# --- shares ---------------------------------------------------------------------------------------


def share_errors(
    turns: Sequence[TurnRecord], weights: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """Return each tenant's error of its share of the service, over any 60 s of saturation.

    Service is prefilled tokens plus twice the output tokens, spread evenly over the time from a
    turn's start to its first token, and from there to its end. Saturated is a window in which each
    weighted tenant has a turn waiting all the time; without one the errors are None. An error is
    the difference between the share had and the share due, both of 1.
    """
    end = math.ceil(max((turn.finished for turn in turns), default=0.0))
    served = {tenant: _service(_of(turns, tenant), end) for tenant in weights}
    waits = {tenant: _waiting_seconds(_of(turns, tenant), end) for tenant in weights}
    due = {tenant: weight / math.fsum(weights.values()) for tenant, weight in weights.items()}
    errors: dict[str, list[float]] = {tenant: [] for tenant in weights}
    full = WINDOW_SECONDS * (1 - 1e-6)
    for at in range(max(0, end - WINDOW_SECONDS + 1)):
        window = slice(at, at + WINDOW_SECONDS)
        if any(math.fsum(row[window]) < full for row in waits.values()):
            continue
        had = {tenant: math.fsum(row[window]) for tenant, row in served.items()}
        total = math.fsum(had.values())
        for tenant, amount in had.items():
            errors[tenant].append(abs(amount / total - due[tenant]) if total else due[tenant])
    return {
        tenant: {
            "max": max(found, default=None),
            "mean": math.fsum(found) / len(found) if found else None,
        }
        for tenant, found in errors.items()
    }


def _of(turns: Iterable[TurnRecord], tenant: str) -> list[TurnRecord]:
    return [turn for turn in turns if turn.tenant == tenant]


def _service(turns: Iterable[TurnRecord], end: int) -> list[float]:
    """Return the service of each second."""
    seconds = [0.0] * end
    for turn in turns:
        if turn.admitted is None:
            continue
        first = turn.finished if turn.first_token is None else turn.first_token
        _spread(seconds, turn.admitted, first, turn.prefilled_tokens)
        _spread(seconds, first, turn.finished, OUTPUT_WEIGHT * turn.output_tokens)
    return seconds


def _spread(seconds: list[float], start: float, stop: float, amount: float) -> None:
    """Add ``amount`` evenly over ``[start, stop)``."""
    if not stop > start:
        seconds[min(int(start), len(seconds) - 1)] += amount
        return
    for at in range(int(start), math.ceil(stop)):
        overlap = min(stop, at + 1) - max(start, at)
        seconds[at] += amount * overlap / (stop - start)


def _waiting_seconds(turns: Iterable[TurnRecord], end: int) -> list[float]:
    """Return for each second the part of it in which some turn waited to start."""
    seconds = [0.0] * end
    covered = 0.0
    for start, stop in sorted((turn.submitted, _end_of_wait(turn)) for turn in turns):
        start = max(start, covered)
        if stop > start:
            _spread(seconds, start, stop, stop - start)
            covered = stop
    return seconds
