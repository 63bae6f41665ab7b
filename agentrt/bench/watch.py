"""Ends a simulated run early, once its result can no longer be within a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrt.bench.metrics import percentile
from agentrt.bench.records import RunRecord
from agentrt.bench.workload import Program

__all__ = ["FAILED", "SlowdownWatch"]

FAILED = 1e9
"""The slowdown of a program that failed: above any bound, and still a number to calculate with."""

CHECK_SECONDS = 20.0
"""Virtual seconds between two looks: a look costs as much as sorting the programs."""


class SlowdownWatch:
    """Asked at every step whether a run is lost: its percentile certain to lie above ``limit``.

    Exact: a program under way is at least as slow as it is by now, one that has not arrived
    counts as 0, so ``bound`` never exceeds what the whole run would give.

    Args:
        record: the run's record, which fills while it goes on.
        arrivals: ``(seconds, program)``.
        isolated: seconds each program takes alone.
        limit: the slowdown; infinite: never ends a run.
        share: the percentile, 0 to 1.
    """

    def __init__(
        self,
        record: RunRecord,
        arrivals: Sequence[tuple[float, Program]],
        isolated: Mapping[str, float],
        limit: float,
        share: float = 0.9,
    ) -> None:
        self._record = record
        self._arrivals = {program.program: time for time, program in arrivals}
        self._isolated = isolated
        self._limit = limit
        self._share = share
        self._next_look = 0.0
        self.lost_at: float | None = None

    def __call__(self, now: float) -> bool:
        """Return whether the run is lost at ``now``."""
        if self.lost_at is None and now >= self._next_look:
            self._next_look = now + CHECK_SECONDS
            if self.bound(now) > self._limit:
                self.lost_at = now
        return self.lost_at is not None

    def bound(self, now: float) -> float:
        """Return the percentile of what is certain at ``now``; at a run's end, its percentile."""
        lowest = {
            name: max(0.0, now - arrival) / self._isolated[name]
            for name, arrival in self._arrivals.items()
        }
        for row in self._record.programs:
            if row.outcome == "finished":
                lowest[row.program] = (row.finished - row.arrival) / self._isolated[row.program]
            elif row.outcome == "failed":
                lowest[row.program] = FAILED
        return percentile(list(lowest.values()), self._share) or 0.0
