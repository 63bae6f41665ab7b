"""The highest arrival rate that a policy serves within a slowdown, by bisection.

A rate is served if the mean over the seeds of each run's P90 slowdown is within the bound. That is
how the reference table was made: its rates lie on one grid of 0.058 / 128 programs a second, which
a bisection on the mean gives, and a mean of one bisection a seed does not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from agentrt.bench.jobs import Jobs, Stop, finished_jobs
from agentrt.bench.probes import Probe, ProbeStore, probe
from agentrt.bench.settings import BenchSettings
from agentrt.bench.workload import Workload
from agentrt.errors import ConfigError

__all__ = ["Capacity", "CapacityGoal", "CapacitySearch", "search_rate"]

LOWEST, HIGHEST = 0.002, 0.06
"""Programs a second: halved seven times they give the reference table's grid."""

MOST_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class CapacityGoal:
    """What counts as served: a mean P90 slowdown of at most ``slowdown`` over the seeds.

    ``resolution`` is how close, in programs a second, the rate is found. A search starts between
    ``lowest`` and ``highest``, and leaves them if it must.
    """

    slowdown: float = 2.0
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    resolution: float = 0.0005
    lowest: float = LOWEST
    highest: float = HIGHEST

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--slowdown", self.slowdown, 1),
            ("--resolution", self.resolution, 0),
        ):
            if not value > least:
                raise ConfigError(
                    f"{flag} is {value}.", remedy=f"Give {flag} a number above {least}."
                )
        if not self.seeds:
            raise ConfigError("No seed was given.", remedy="Give --seeds 1 or more.")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found: ``rate`` is served, ``next_rate`` is not.

    ``rate`` is 0 where not even the lowest rate tried is served; ``next_rate`` is None where the
    highest one tried still is. ``per_seed`` are the P90 slowdowns at ``rate``.
    """

    policy: str
    rate: float
    next_rate: float | None
    per_seed: Mapping[int, float] = field(default_factory=dict)
    failed: int = 0

    @property
    def slowdown(self) -> float | None:
        """The mean P90 slowdown at ``rate``."""
        return sum(self.per_seed.values()) / len(self.per_seed) if self.per_seed else None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "rate": self.rate,
            "next_rate": self.next_rate,
            "slowdown_p90": self.slowdown,
            "per_seed": {str(seed): value for seed, value in self.per_seed.items()},
            "failed_programs": self.failed,
        }


def search_rate(
    resolution: float, low: float = LOWEST, high: float = HIGHEST
) -> Generator[float, bool, tuple[float, float | None]]:
    """Yield rates to try and take whether each is served; return the last served and the first not.

    Both ends are taken for granted until the search ends at one of them, and are then tried. It
    is assumed that what is served at a rate is served at every lower one.
    """
    served, failed, doublings = False, False, 0
    while True:
        while high - low > resolution:
            middle = (low + high) / 2
            if (yield middle):
                low, served = middle, True
            else:
                high, failed = middle, True
        if not served and low > 0:
            served = yield low
            if not served:
                high, low, failed = low, 0.0, True
                continue
        if failed or not (yield high):
            return low, high
        low, doublings = high, doublings + 1
        if doublings > MOST_DOUBLINGS:
            return low, None
        high = 2 * high


def _fastest(workload: Workload) -> float:
    """The least slowdown there can be: 1 where a program is never faster than alone.

    It may be where programs share what they prompt, or where turns side by side, delayed by others,
    happen to fall in better steps.
    """
    shares = any(turn.blocks for row in workload.programs for turn in row.turns)
    return 0.0 if shares or any(row.branches for row in workload.programs) else 1.0


class CapacitySearch:
    """Searches for several policies at once, as many runs side by side as ``jobs`` allows.

    Args:
        workload: the selected part; ``isolated`` its programs' seconds alone.
        settings: its rate is ignored.
        on_rate: told of each rate decided: policy, rate, whether it is served.
    """

    def __init__(
        self,
        workload: Workload,
        isolated: Mapping[str, float],
        settings: BenchSettings,
        goal: CapacityGoal,
        store: ProbeStore,
        *,
        stop: Stop = lambda: False,
        on_rate: Callable[[str, float, bool], None] = lambda policy, rate, served: None,
    ) -> None:
        self._workload = workload
        self._isolated = isolated
        self._settings = settings
        self._goal = goal
        self._store = store
        self._stop = stop
        self._on_rate = on_rate
        self._fastest = _fastest(workload)
        self._running: dict[Future[Probe | None], tuple[str, float, int]] = {}

    def run(self, policies: Sequence[str], jobs: Jobs) -> dict[str, Capacity]:
        """Return what was found, policy by policy; those that were stopped are missing."""
        found: dict[str, Capacity] = {}
        goal = self._goal
        searches = {
            policy: search_rate(goal.resolution, goal.lowest, goal.highest) for policy in policies
        }
        rates = {policy: next(search) for policy, search in searches.items()}
        while rates and not self._stop():
            for policy in list(rates):
                result = self._settle(policy, searches[policy], rates)
                if result is not None:
                    found[policy] = result
            self._start(rates, jobs)
            if self._running:
                self._collect(jobs)
        jobs.stop()
        return {policy: found[policy] for policy in policies if policy in found}

    def _settle(
        self, policy: str, search: Generator[float, bool, Any], rates: dict[str, float]
    ) -> Capacity | None:
        """Decide the policy's rates as far as its probes reach; return its capacity at the end."""
        while (served := self._served(policy, rates[policy])) is not None:
            self._on_rate(policy, rates[policy], served)
            try:
                rates[policy] = search.send(served)
            except StopIteration as end:
                del rates[policy]
                return self._capacity(policy, *end.value)
        return None

    def _served(self, policy: str, rate: float) -> bool | None:
        """Whether a rate is served; None while that is open."""
        known = self._known(policy, rate)
        left = len(self._goal.seeds) - len(known)
        if sum(one.p90 for one in known) + left * self._fastest > self._most:
            return False
        return None if left or not all(one.whole for one in known) else True

    @property
    def _most(self) -> float:
        """What the seeds' P90 slowdowns may be together."""
        return self._goal.slowdown * len(self._goal.seeds)

    def _known(self, policy: str, rate: float) -> list[Probe]:
        """Return the probes there are; of those that ended early the least they can be."""
        every = (self._store.get(policy, rate, seed) for seed in self._goal.seeds)
        return [one for one in every if one is not None]

    def _limit(self, policy: str, rate: float, seed: int) -> float:
        """Return the P90 of one run above which the rate is not served, whatever is still open."""
        others = [one.p90 for one in self._known(policy, rate) if one.seed != seed]
        open_ones = len(self._goal.seeds) - 1 - len(others)
        return self._most - sum(others) - open_ones * self._fastest

    def _start(self, rates: Mapping[str, float], jobs: Jobs) -> None:
        """Start runs that are needed, first those of policies that have none under way."""
        while len(self._running) < jobs.width and (chosen := self._missing(rates)) is not None:
            policy, rate, seed = chosen
            settings = replace(self._settings, rate=rate)
            limit = self._limit(policy, rate, seed)
            future = jobs.submit(
                probe, self._workload, self._isolated, settings, policy, seed, limit
            )
            self._running[future] = chosen
            if jobs.width == 1:
                return

    def _missing(self, rates: Mapping[str, float]) -> tuple[str, float, int] | None:
        under_way = list(self._running.values())
        busy = [policy for policy, *_ in under_way]
        for policy in sorted(rates, key=busy.count):
            known = {one.seed for one in self._known(policy, rates[policy]) if one.whole}
            for seed in self._goal.seeds:
                wanted = (policy, rates[policy], seed)
                if seed not in known and wanted not in under_way:
                    return wanted
        return None

    def _collect(self, jobs: Jobs) -> None:
        for future in finished_jobs(jobs, list(self._running), self._stop):
            del self._running[future]
            found = future.result()
            if found is not None:
                self._store.add(found)

    def _capacity(self, policy: str, rate: float, next_rate: float | None) -> Capacity:
        probes = self._known(policy, rate) if rate > 0 else []
        return Capacity(
            policy,
            rate,
            next_rate,
            {one.seed: one.p90 for one in probes},
            max((one.failed for one in probes), default=0),
        )
