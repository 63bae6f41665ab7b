"""What a simulation tells of itself, and a ledger that keeps sums instead of a row a turn."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from agentrt.bench.metrics import mean, percentile
from agentrt.bench.records import ProgramOutcome, RunRecord
from agentrt.bench.workload import Program
from agentrt.scheduling.plan import PinEnded, SchedulerStatistics, TurnStats
from agentrt.simulation.synthesis import origin

__all__ = ["Ledger", "Sampler", "Tally"]


class Sampler(Protocol):
    """Keeps the state of the pools now and then, from ``due`` on."""

    @property
    def due(self) -> float: ...
    def add(self, now: float, state: SchedulerStatistics) -> None: ...


class Ledger(Protocol):
    """Is told everything that happens in a run; :class:`agentrt.bench.recorder.Recorder` is one."""

    @property
    def record(self) -> RunRecord: ...
    @property
    def sampler(self) -> Sampler: ...
    def turn(self, program: Program, index: int, ideal: int, stats: TurnStats) -> Any: ...
    def gap(self, program: Program, index: int, start: float, end: float) -> None: ...
    def pin(self, event: PinEnded) -> None: ...
    def program(
        self,
        program: Program,
        arrival: float,
        finished: float,
        outcome: ProgramOutcome,
        detail: str = "",
    ) -> None: ...


class _Occupancy:
    """Sums of the pool's use at even times."""

    def __init__(self, interval: float) -> None:
        self.due = 0.0
        self.samples = 0
        self.leased = self.pinned = self.peak = 0.0
        self._interval = interval

    def add(self, now: float, state: SchedulerStatistics) -> None:
        """Add a sample."""
        leased = state.pages_leased / state.pages_total
        self.samples += 1
        self.leased += leased
        self.pinned += state.pages_pinned / state.pages_total
        self.peak = max(self.peak, leased)
        self.due = (now // self._interval + 1) * self._interval

    def figures(self) -> dict[str, float | None]:
        """Return means over the samples, and the most that was leased."""
        count = self.samples
        return {
            "leased_mean": self.leased / count if count else None,
            "leased_max": self.peak if count else None,
            "pinned_mean": self.pinned / count if count else None,
        }


class Tally:
    """Figures of a run of any size: times as flat arrays, everything else as sums.

    The figures have the names and meanings of :func:`agentrt.bench.metrics.measure`.
    """

    def __init__(self, record: RunRecord, isolated: Mapping[str, float], interval: float) -> None:
        self.record = record
        self.sampler = _Occupancy(interval)
        self._isolated = isolated
        self._completion = array("d")
        self._slowdown = array("d")
        self._first = array("d")
        self._return = array("d")
        self._sums: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._pins: Counter[str] = Counter()
        self._split = dict.fromkeys(("queue", "prefill", "decode", "tool"), 0.0)
        self._longest = 0.0
        self._span = [float("inf"), 0.0]

    def turn(self, program: Program, index: int, ideal: int, stats: TurnStats) -> None:
        """Add a turn that ended."""
        if stats.first_token is not None:
            # After ``select`` the first turn of the first context is the program's first one.
            kept = self._first if index == 0 else self._return
            kept.append(stats.first_token - stats.submitted)
        sums, split = self._sums, self._split
        sums["turns"] += 1
        sums["prompt"] += stats.prompt_tokens
        sums["ideal"] += ideal
        sums["cached"] += stats.cached_tokens
        sums["prefilled"] += stats.prefilled_tokens
        sums["output"] += stats.output_tokens
        sums["preemptions"] += stats.preemptions
        split["queue"] += stats.queue_seconds
        split["prefill"] += stats.prefill_seconds
        split["decode"] += stats.decode_seconds
        self._longest = max(self._longest, stats.queue_seconds)

    def gap(self, program: Program, index: int, start: float, end: float) -> None:
        """Add the time between two turns."""
        self._split["tool"] += end - start

    def pin(self, event: PinEnded) -> None:
        """Count a pin that ended."""
        self._pins[event.outcome] += 1

    def program(
        self,
        program: Program,
        arrival: float,
        finished: float,
        outcome: ProgramOutcome,
        detail: str = "",
    ) -> None:
        """Add a program that ended."""
        self._outcomes[outcome] += 1
        self._span = [min(self._span[0], arrival), max(self._span[1], finished)]
        if outcome != "finished":
            return
        self._completion.append(finished - arrival)
        alone = self._isolated.get(origin(program.program), 0.0)
        if alone > 0:
            self._slowdown.append((finished - arrival) / alone)

    def figures(self) -> dict[str, Any]:
        """Return the run's figures; seconds, tokens and shares."""
        sums, done = self._sums, len(self._completion)
        makespan = max(self._span[1] - self._span[0], 0.0)
        hits = sums["prompt"] - sums["ideal"]
        return {
            "programs": dict(sorted(self._outcomes.items())),
            "turns": sums["turns"],
            "jct_mean": mean(self._completion),
            **_percentiles("jct", self._completion, (50, 90, 99)),
            "makespan": makespan,
            "programs_per_hour": 3600 * done / makespan if makespan > 0 else 0.0,
            **_percentiles("ttft_first", self._first, (50, 99)),
            **_percentiles("ttft_return", self._return, (50, 99)),
            "longest_wait": self._longest,
            "prompt_tokens": sums["prompt"],
            "output_tokens": sums["output"],
            "prefilled_tokens": sums["prefilled"],
            "ideal_tokens": sums["ideal"],
            "prefill_ratio": sums["prefilled"] / sums["ideal"] if sums["ideal"] else None,
            "prefix_hit_tokens": sums["cached"],
            "prefix_hit_share": sums["cached"] / hits if hits > 0 else None,
            "preemptions": sums["preemptions"],
            "pins": dict(sorted(self._pins.items())),
            "wait_seconds": {name: value / max(done, 1) for name, value in self._split.items()},
            "kv": self.sampler.figures(),
            "slowdown_mean": mean(self._slowdown),
            **_percentiles("slowdown", self._slowdown, (50, 90, 99)),
        }


def _percentiles(name: str, values: array[float], shares: tuple[int, ...]) -> dict[str, Any]:
    return {f"{name}_p{share}": percentile(values, share / 100) for share in shares}
