"""Several policies on the same seeded arrivals, one run after another; finished runs are reused."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.metrics import average, measure
from agentrt.bench.policies import check_policies
from agentrt.bench.recorder import RunProgress
from agentrt.bench.records import RunRecord
from agentrt.bench.results import Comparison, Metrics, WorkloadFacts
from agentrt.bench.settings import BenchSettings
from agentrt.bench.simulated import isolated_seconds, simulate
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
        stop: asked all the time; once true the run under way ends and no other one starts.
    """

    workload: Workload
    settings: BenchSettings
    policies: Sequence[str]
    seeds: Sequence[int]
    store: ResultStore
    observer: Observer
    stop: Callable[[], bool] = lambda: False
    wall_seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Comparison:
        """Return the comparison; ``complete`` is False if it was stopped."""
        chosen = self.settings.select(self.workload)
        comparison = Comparison(
            workload=chosen.facts(),
            policies=list(self.policies),
            settings=self.settings.to_json(chosen) | {"seeds": list(self.seeds)},
        )
        isolated = self._isolated(chosen)
        for seed in self.seeds:
            for policy in self.policies:
                if self.stop():
                    break
                record = self._one(chosen, policy, seed, isolated)
                comparison.runs.append(record)
        comparison.runs.sort(key=lambda run: (self.policies.index(run.policy), run.seed))
        self._summarise(comparison, isolated)
        return comparison

    def _one(
        self, workload: Workload, policy: str, seed: int, isolated: dict[str, float]
    ) -> RunRecord:
        record = self.store.load(policy, seed)
        reused = record is not None
        if record is None:
            self.observer.started(policy, seed)
            started = time.monotonic()
            record = self._run(workload, policy, seed)
            self.wall_seconds[f"{policy}-{seed}"] = round(time.monotonic() - started, 3)
            self.store.save(record)
        self.observer.finished(record, measure(record, isolated), reused)
        return record

    def _run(self, workload: Workload, policy: str, seed: int) -> RunRecord:
        settings = self.settings
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
        if settings.engine == "simulated":
            simulate(arrivals, record, settings, stop=self.stop, progress=self.observer.progress)
        else:
            from agentrt.bench.live import run_live  # loads torch

            run_live(arrivals, record, settings, stop=self.stop, progress=self.observer.progress)
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
        whole = len(self.policies) * len(self.seeds)
        comparison.complete = sum(run.complete for run in comparison.runs) == whole
