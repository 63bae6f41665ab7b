"""Several policies on the same seeded arrivals, one run after another; finished runs are reused."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.intervals import intervals, losses, oracle_distance
from agentrt.bench.isolated import isolated_seconds
from agentrt.bench.jobs import Jobs, finished_jobs, open_jobs
from agentrt.bench.metrics import average, measure
from agentrt.bench.policies import check_policies
from agentrt.bench.recorder import RunProgress
from agentrt.bench.records import RunRecord
from agentrt.bench.results import Comparison, Metrics, WorkloadFacts
from agentrt.bench.settings import BenchSettings
from agentrt.bench.simulated import simulate
from agentrt.bench.steptimes import StepTimes
from agentrt.bench.store import ResultStore
from agentrt.bench.workload import Workload
from agentrt.simulation.cost import load_cost

__all__ = ["Comparer", "Observer", "check_policies", "isolated_seconds", "simulate"]


class Observer(Protocol):
    """Told how a comparison goes on; shows it."""

    def started(self, policy: str, seed: int) -> None:
        """A run begins."""
        ...

    def progress(self, state: RunProgress) -> None:
        """A run goes on."""
        ...

    def finished(self, record: RunRecord, figures: Metrics, reused: bool) -> None:
        """A run ended, was interrupted (not ``complete``), or was taken from an earlier try."""
        ...


def _counted(facts: WorkloadFacts, runs: Sequence[RunRecord]) -> WorkloadFacts:
    """Replace estimated token counts of texts by those of the model's own tokenizer."""
    whole = next((run for run in runs if run.complete), None)
    if whole is None:
        return facts
    return replace(
        facts,
        prompt_tokens=sum(turn.prompt_tokens for turn in whole.turns),
        ideal_tokens=sum(turn.ideal_tokens for turn in whole.turns),
        output_tokens=sum(turn.output_tokens for turn in whole.turns),
    )


@dataclass(frozen=True, slots=True)
class Ran:
    """A run's record, and what of it may differ from one time to the next."""

    record: RunRecord
    wall_seconds: float
    step_times: dict[str, float] | None


def run_one(
    workload: Workload,
    settings: BenchSettings,
    policy: str,
    seed: int,
    timed: bool,
    progress: Callable[[RunProgress], None] | None,
    stop: Callable[[], bool],
) -> Ran:
    """Run one policy on the arrivals of one seed."""
    started = time.monotonic()
    arrivals = draw_arrivals(
        workload.programs, settings.rate, seed, settings.time_scale, settings.arrivals
    )
    record = RunRecord(
        policy=policy,
        seed=seed,
        engine=settings.engine,
        pool_tokens=settings.pool or 0,
        workload=workload.name,
        settings=settings.to_json(workload),
    )
    times = StepTimes() if timed else None
    if settings.engine == "simulated":
        simulate(arrivals, record, settings, stop=stop, progress=progress, times=times)
    else:
        from agentrt.bench.live import run_live  # loads torch

        run_live(arrivals, record, settings, stop=stop, progress=progress)
    wall = round(time.monotonic() - started, 3)
    return Ran(record, wall, None if times is None else times.to_json())


@dataclass(slots=True)
class Comparer:
    """Runs what is missing and puts everything together.

    Args:
        workload: as read; ``settings`` select the part that is replayed.
        settings: shared by all runs.
        policies: as ``make_policy`` takes them.
        seeds: one arrival pattern each.
        store: where runs are kept and taken from.
        observer: told of every run.
        stop: asked all the time; once true the runs under way end and no other one starts.
        jobs: runs side by side, each on a process of its own (simulated only).
        timed: measure the scheduler's own time a step; kept apart from the results.
    """

    workload: Workload
    settings: BenchSettings
    policies: Sequence[str]
    seeds: Sequence[int]
    store: ResultStore
    observer: Observer
    stop: Callable[[], bool] = lambda: False
    jobs: int = 1
    timed: bool = False
    wall_seconds: dict[str, float] = field(default_factory=dict)
    step_times: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self) -> Comparison:
        """Return the comparison; ``complete`` is False if it was stopped."""
        chosen = self.settings.select(self.workload)
        comparison = Comparison(
            workload=chosen.facts(),
            policies=list(self.policies),
            settings=self.settings.to_json(chosen) | {"seeds": list(self.seeds)},
        )
        isolated = self._isolated(chosen)
        wanted = [(policy, seed) for seed in self.seeds for policy in self.policies]
        with open_jobs(self.jobs, self.stop) as room:
            comparison.runs += self._all(wanted, chosen, isolated, room)
        comparison.runs.sort(key=lambda run: (self.policies.index(run.policy), run.seed))
        self._summarise(comparison, isolated)
        return comparison

    def _all(
        self,
        wanted: Sequence[tuple[str, int]],
        workload: Workload,
        isolated: dict[str, float],
        room: Jobs,
    ) -> Iterator[RunRecord]:
        """Yield every run that is there or can be made until ``stop`` is asked for."""
        left = deque(wanted)
        running: list[Future[Ran]] = []
        while running or (left and not self.stop()):
            while left and len(running) < room.width and not self.stop():
                policy, seed = left.popleft()
                kept = self.store.load(policy, seed)
                if kept is not None:
                    self.observer.finished(kept, measure(kept, isolated), True)
                    yield kept
                    continue
                self.observer.started(policy, seed)
                progress = self.observer.progress if room.width == 1 else None
                running.append(
                    room.submit(
                        run_one, workload, self.settings, policy, seed, self.timed, progress
                    )
                )
            for future in finished_jobs(room, running, self.stop) if running else ():
                running.remove(future)
                yield self._ended(future.result(), isolated)

    def _ended(self, ran: Ran, isolated: dict[str, float]) -> RunRecord:
        record = ran.record
        name = f"{record.policy}-{record.seed}"
        self.wall_seconds[name] = ran.wall_seconds
        if ran.step_times is not None:
            self.step_times[name] = ran.step_times
        self.store.save(record)
        self.observer.finished(record, measure(record, isolated), False)
        return record

    def _isolated(self, workload: Workload) -> dict[str, float]:
        if self.settings.engine == "live":
            return {}
        return isolated_seconds(workload.programs, load_cost(self.settings.cost))

    def _summarise(self, comparison: Comparison, isolated: dict[str, float]) -> None:
        for policy in self.policies:
            runs = [run for run in comparison.runs if run.policy == policy]
            # What an interrupted run had so far counts only where there is nothing better.
            counted = [run for run in runs if run.complete] or runs
            figures = {str(run.seed): measure(run, isolated) for run in counted}
            if figures:
                complete = all(run.complete for run in counted)
                comparison.per_seed[policy] = figures
                average_figures = average(list(figures.values()))
                comparison.metrics[policy] = {"complete": complete} | average_figures
        if comparison.workload.literal and self.settings.engine == "live":
            comparison.workload = _counted(comparison.workload, comparison.runs)
        comparison.intervals = intervals(comparison.per_seed)
        comparison.oracle_distance = oracle_distance(comparison.metrics)
        comparison.losses = losses(comparison.per_seed)
        whole = len(self.policies) * len(self.seeds)
        comparison.complete = sum(run.complete for run in comparison.runs) == whole
