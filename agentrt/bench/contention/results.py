"""What a run of the experiment gave, and what all runs together say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agentrt.bench.contention.statistics import bootstrap, permutation_p

__all__ = [
    "ALONE",
    "BASELINE",
    "UNCONTENDED",
    "Bases",
    "Outcome",
    "RoleOutcome",
    "Slowdowns",
    "slowdowns",
    "summarise",
]

BASELINE = "serialise"
ALONE = "alone:"
"""Prefix of the cells in which one role runs with nobody beside it."""

UNCONTENDED = "uncontended"
"""Name of the cells in which all run together with memory for all."""


@dataclass(frozen=True, slots=True)
class RoleOutcome:
    """One replay of one run; seconds.

    ``total`` counts from the moment when all were submitted, waiting and the base allocation
    included; None when it was killed. ``replay`` is the curve alone; ``stopped`` the time in which
    it could not go on. ``latency`` has P50, P95 and the maximum of growing to a new sample.
    """

    priority: str
    survived: bool
    total: float | None
    replay: float | None = None
    waited: float | None = None
    stopped: float | None = None
    latency: Mapping[str, float] | None = None
    peak: int = 0
    oom_kills: int = 0


@dataclass(slots=True)
class Outcome:
    """One policy's run: ``timeline`` has rows (seconds, bytes of each role in order)."""

    policy: str
    run: int
    roles: dict[str, RoleOutcome]
    makespan: float
    peak: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)
    timeline: list[tuple[float, ...]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict; ``from_json`` reverses it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Return the outcome that ``to_json`` wrote."""
        rest = dict(data)
        roles = {name: RoleOutcome(**one) for name, one in rest.pop("roles").items()}
        rest["timeline"] = [tuple(row) for row in rest["timeline"]]
        return cls(roles=roles, **rest)

    @property
    def survivors(self) -> int:
        """How many replays came to their end."""
        return sum(role.survived for role in self.roles.values())


@dataclass(frozen=True, slots=True)
class Slowdowns:
    """One run against the cells of the same round; ratios are None where a replay was killed.

    ``high`` is against that replay alone on the machine. ``lows`` are against the same replays
    together with memory for all; ``lows_alone`` are stricter, against each alone.
    """

    run: int
    survivors: int
    high: float | None
    lows: Mapping[str, float | None]
    lows_alone: Mapping[str, float | None]
    total: float
    total_ratio: float | None

    @property
    def low(self) -> float | None:
        """The slower of the low priorities that came to their end."""
        return _slowest(self.lows)

    @property
    def low_alone(self) -> float | None:
        """The same against each alone."""
        return _slowest(self.lows_alone)


def _slowest(ratios: Mapping[str, float | None]) -> float | None:
    return max((value for value in ratios.values() if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class Bases:
    """Seconds of one round's cells that ratios are taken against."""

    alone: Mapping[str, float]
    together: Mapping[str, float]
    serialised: float | None


def slowdowns(outcome: Outcome, bases: Bases) -> Slowdowns:
    """Compare a run with the bases of its round."""

    def against(base: Mapping[str, float], priority: str) -> dict[str, float | None]:
        return {
            name: None if role.total is None else role.total / base[name]
            for name, role in outcome.roles.items()
            if role.priority == priority
        }

    whole = outcome.survivors == len(outcome.roles)
    return Slowdowns(
        run=outcome.run,
        survivors=outcome.survivors,
        high=_slowest(against(bases.alone, "high")),
        lows=against(bases.together, "low"),
        lows_alone=against(bases.alone, "low"),
        total=outcome.makespan,
        total_ratio=outcome.makespan / bases.serialised if whole and bases.serialised else None,
    )


def summarise(outcomes: Sequence[Outcome], policies: Sequence[str]) -> dict[str, Any]:
    """Return ``policies.<name>`` of the results: means, intervals, tests and per-run values.

    Runs whose round lacks the cells that they are compared with are left out, and so is a policy
    without any run.
    """
    cells = {(one.policy, one.run): one for one in outcomes}
    out: dict[str, Any] = {}
    for policy in policies:
        rows = [
            row
            for one in sorted(outcomes, key=lambda one: one.run)
            if one.policy == policy and (row := _against(one, cells)) is not None
        ]
        if rows:
            reference = [one.makespan for one in outcomes if one.policy == BASELINE]
            out[policy] = _policy(policy, rows, cells, reference)
    return out


def _against(outcome: Outcome, cells: Mapping[tuple[str, int], Outcome]) -> Slowdowns | None:
    alone, together = {}, {}
    shared = cells.get((UNCONTENDED, outcome.run))
    for name in outcome.roles:
        single = cells.get((ALONE + name, outcome.run))
        if shared is None or single is None:
            return None
        mine, ours = single.roles[name].total, shared.roles[name].total
        if mine is None or ours is None:
            return None
        alone[name], together[name] = mine, ours
    serialised = cells.get((BASELINE, outcome.run))
    return slowdowns(outcome, Bases(alone, together, serialised.makespan if serialised else None))


def _policy(
    policy: str,
    rows: Sequence[Slowdowns],
    cells: Mapping[tuple[str, int], Outcome],
    reference: Sequence[float],
) -> dict[str, Any]:
    figures = {
        "high_slowdown": [row.high for row in rows if row.high is not None],
        "low_slowdown": [row.low for row in rows if row.low is not None],
        "low_slowdown_alone": [row.low_alone for row in rows if row.low_alone is not None],
        "total": [row.total for row in rows],
        "total_vs_serialise": [row.total_ratio for row in rows if row.total_ratio is not None],
    }
    lows = rows[0].lows
    return {
        "survivors": min(row.survivors for row in rows),
        "programs": len(lows) + 1,
        "runs_without_kill": sum(row.survivors == len(lows) + 1 for row in rows),
        "n": len(rows),
        **{name: _mean(values) for name, values in figures.items()},
        "low_slowdown_each": {
            name: _mean([value for row in rows if (value := row.lows[name]) is not None])
            for name in lows
        },
        "worst": {name: max(values, default=None) for name, values in figures.items()},
        "intervals": {name: bootstrap(values) for name, values in figures.items()},
        "p_total_vs_serialise": (
            None if policy == BASELINE else permutation_p(figures["total"], reference)
        ),
        "runs": [_row(row, cells[policy, row.run]) for row in rows],
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _row(row: Slowdowns, outcome: Outcome) -> dict[str, Any]:
    return {
        "run": row.run,
        "survivors": row.survivors,
        "high_slowdown": row.high,
        "low_slowdown": row.low,
        "low_slowdown_each": dict(row.lows),
        "low_slowdown_alone": row.low_alone,
        "total": row.total,
        "total_vs_serialise": row.total_ratio,
        "peak_bytes": outcome.peak,
        "roles": {name: asdict(role) for name, role in outcome.roles.items()},
        "statistics": outcome.statistics,
    }
