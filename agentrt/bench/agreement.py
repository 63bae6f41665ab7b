"""Does a simulation say what a live run takes? The same arrivals both ways, on this machine.

A live run on the CPU engine is observed step by step; a cost model is fitted to its steps; the same
arrivals are simulated. Fitted to the run itself, whatever is left is the simulator's error: order,
batching, caching, queueing. Fitted to runs before and after it, the error also holds how the
machine has changed meanwhile, and that the fitted terms are only a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.live import run_live, runtime_config
from agentrt.bench.metrics import measure
from agentrt.bench.records import RunRecord
from agentrt.bench.settings import BenchSettings
from agentrt.bench.workload import Program, Turn
from agentrt.errors import BackendUnavailable
from agentrt.scheduling.plan import StepPlan
from agentrt.simulation.cost import CostModel
from agentrt.simulation.fit import Fit, Observation, fit
from agentrt.simulation.scenario import ClusterSettings, play

__all__ = ["Check", "StepLog", "small_programs"]

BETWEEN_STEPS = 5e-3
"""Seconds after a step within which the next one follows it at once; later, the engine idled."""


def small_programs(count: int, seed: int) -> list[Program]:
    """Return programs that a small model serves in seconds: growing contexts, short gaps."""
    source = random.Random(f"{seed}/small")
    return [_small_program(number, source) for number in range(count)]


def _small_program(number: int, source: random.Random) -> Program:
    turns: list[Turn] = []
    held = 0
    for _ in range(source.randint(4, 8)):
        prompt = held + source.randint(60, 400 if held else 900)
        output = source.randint(16, 64)
        gap = min(source.lognormvariate(-1.2, 0.8), 3.0)
        turns.append(Turn("main", prompt, held, output, gap=gap))
        held = prompt + output
    return Program(f"program-{number}", tuple(turns))


class StepLog:
    """Keeps what every step held and when; called in the engine's thread."""

    def __init__(self) -> None:
        self._rows: list[tuple[tuple[int, int, int, int], float, float]] = []

    def __call__(self, plan: StepPlan, start: float, end: float) -> None:
        """Note a step."""
        prefilled = pairs = sequences = context = 0
        for piece in plan.slices:
            if piece.sample and piece.count == 1:
                sequences += 1
                context += piece.start + 1
            else:
                prefilled += piece.count
                pairs += piece.count * (2 * piece.start + piece.count + 1) // 2
        self._rows.append(((prefilled, pairs, sequences, context), start, end))

    def observations(self) -> list[Observation]:
        """Return the steps with their times, each up to the start of the next one.

        Where the engine idled after a step, the usual time between two steps stands for it.
        """
        starts = [start for _, start, _ in self._rows[1:]] + [float("inf")]
        waits = [later - end for later, (_, _, end) in zip(starts, self._rows, strict=True)]
        close = [wait for wait in waits if wait < BETWEEN_STEPS]
        usual = median(close) if close else 0.0
        return [
            Observation(*terms, end - start + (wait if wait < BETWEEN_STEPS else usual))
            for (terms, start, end), wait in zip(self._rows, waits, strict=True)
        ]


@dataclass(slots=True)
class Check:
    """One workload, live and simulated.

    Args:
        programs: what is replayed; lengths count, texts are not used.
        settings: of the live run (its pool, waiting bound, model).
        policy: the scheduling policy of both.
        rate: programs a second.
        tell: is given a line of text now and then.
    """

    programs: Sequence[Program]
    settings: BenchSettings
    policy: str
    rate: float
    tell: Callable[[str], None] = lambda text: None
    _logs: dict[int, list[Observation]] = field(default_factory=dict)

    def run(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Play every seed live, then simulate each; return one row a seed.

        Raises:
            BackendUnavailable: a live run did not get through.
        """
        live = {seed: self._live(seed) for seed in seeds}
        return [self._row(seed, live[seed]) for seed in seeds]

    def _arrivals(self, seed: int) -> list[tuple[float, Program]]:
        return draw_arrivals(self.programs, self.rate, seed)

    def _live(self, seed: int) -> RunRecord:
        record = RunRecord(self.policy, seed, "live", 0, "agreement")
        log = StepLog()
        run_live(self._arrivals(seed), record, self.settings, on_step=log)
        if not record.complete or any(row.outcome != "finished" for row in record.programs):
            raise BackendUnavailable(
                "A live run did not get through.", remedy="Use fewer or shorter programs."
            )
        self._logs[seed] = log.observations()
        self.tell(f"seed {seed}: live, {len(self._logs[seed])} steps")
        return record

    def _row(self, seed: int, live: RunRecord) -> dict[str, Any]:
        others = [row for other, rows in self._logs.items() if other != seed for row in rows]
        own = self._fit(self._logs[seed])
        figures, simulated = measure(live), self._simulate(seed, own.cost, live.pool_tokens)
        told = {
            "seed": seed,
            "programs": len(live.programs),
            "turns": len(live.turns),
            "steps": len(self._logs[seed]),
            "live": _main_figures(figures),
            "simulated": _main_figures(simulated),
            "error": simulated["jct_mean"] / figures["jct_mean"] - 1,
            "r2": own.r2,
            "cost": own.cost.to_json(),
        }
        if others:
            foretold = self._simulate(seed, self._fit(others).cost, live.pool_tokens)
            told["fitted_to_other_runs"] = _main_figures(foretold)
            told["error_fitted_to_other_runs"] = foretold["jct_mean"] / figures["jct_mean"] - 1
        self.tell(
            f"seed {seed}: live {figures['jct_mean']:.2f} s, simulated "
            f"{simulated['jct_mean']:.2f} s: {told['error']:+.1%}"
        )
        return told

    def _fit(self, steps: Sequence[Observation]) -> Fit:
        config = runtime_config(self.policy, self.settings).scheduler_config()
        return fit(
            steps,
            relative=False,
            source="steps of a live run",
            token_budget=config.token_budget,
            max_seqs=config.max_seqs,
            reserve_output=config.reserve == "output",
        )

    def _simulate(self, seed: int, cost: CostModel, pool: int) -> dict[str, Any]:
        record = RunRecord(self.policy, seed, "simulated", pool, "agreement")
        page = runtime_config(self.policy, self.settings).page_size
        cluster = ClusterSettings(
            cost=cost, pool_tokens=pool, page_tokens=page, max_wait=self.settings.max_wait
        )
        return play(self._arrivals(seed), record, cluster, "agentrt").figures


def _main_figures(figures: dict[str, Any]) -> dict[str, Any]:
    names = ("jct_mean", "jct_p50", "jct_p90", "ttft_return_p50", "longest_wait", "prefill_ratio")
    return {name: figures[name] for name in names} | {"wait_seconds": figures["wait_seconds"]}
