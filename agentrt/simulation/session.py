"""One call of `agentrt simulate`: the same arrivals under several policies and placements."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.importers import load_workload
from agentrt.bench.machine import machine_facts
from agentrt.bench.recorder import Progress
from agentrt.bench.records import RunRecord
from agentrt.bench.report import write_report
from agentrt.bench.results import Comparison
from agentrt.bench.store import write_json
from agentrt.bench.workload import Contexts, Program, Workload
from agentrt.errors import ConfigError
from agentrt.simulation.scenario import ClusterSettings, Outcome, play
from agentrt.simulation.synthesis import resample
from agentrt.simulation.toolmemory import MemoryCurves, tool_memory

__all__ = ["ROWS_UP_TO", "Scenario", "load_scenario", "write_outcomes"]

ROWS_UP_TO = 40_000
"""Turns of which every one is kept, so that there is a report; larger runs keep sums."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Programs with their arrivals, and the cluster that serves them."""

    settings: ClusterSettings
    workload: Workload
    arrivals: list[tuple[float, Program]]
    rate: float | None
    seed: int
    memory: Callable[[Program, int], int] = field(repr=False)

    @property
    def turns(self) -> int:
        """Turns of all programs."""
        return sum(len(program.turns) for _, program in self.arrivals)

    @property
    def rows(self) -> bool:
        """Whether every turn is kept, for the report."""
        return self.turns <= ROWS_UP_TO

    def run(
        self,
        policy: str,
        placement: str,
        stop: Callable[[], bool],
        progress: AbstractContextManager[Progress],
    ) -> Outcome:
        """Run the arrivals once."""
        settings = self.settings
        record = RunRecord(
            policy=policy,
            seed=self.seed,
            engine="simulated",
            pool_tokens=settings.pool_tokens * (settings.workers + settings.decoders),
            workload=self.workload.name,
            settings=self.to_json(),
        )
        with progress as show:
            return play(
                self.arrivals,
                record,
                settings,
                placement,
                rows=self.rows,
                tool_memory=self.memory,
                stop=stop,
                progress=show,
            )

    def to_json(self) -> dict[str, Any]:
        """Return what the figures depend on, besides policy and placement."""
        told = {
            "engine": "simulated",
            "workload": self.workload.digest(),
            "programs": len(self.arrivals),
            "turns": self.turns,
            "rate": self.rate,
            "seed": self.seed,
            "cluster": self.settings.to_json(),
        }
        # JSON has no infinity (of ``max_wait``): it becomes a word.
        plain: dict[str, Any] = json.loads(json.dumps(told), parse_constant=str)
        return plain


def load_scenario(
    path: Path,
    settings: ClusterSettings,
    *,
    contexts: Contexts = "main",
    limit: int | None = None,
    programs: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    tool_default: int = 0,
) -> Scenario:
    """Read a workload and draw programs (where ``programs`` is given) and arrivals from it.

    ``tool_default`` is the bytes of a tool call of which nothing is recorded.

    Raises:
        WorkloadError: the file is not a workload.
        ConfigError: a number is out of its range.
    """
    workload = load_workload(path).select(contexts, limit)
    played = list(workload.programs)
    if programs is not None:
        played = resample(played, programs, seed)
    curves = MemoryCurves.read(path) if settings.tool_memory is not None else MemoryCurves({})
    arrivals = draw_arrivals(played, rate, seed)
    memory = tool_memory(curves, tool_default)
    return Scenario(settings, workload, arrivals, rate, seed, memory)


def write_outcomes(scenario: Scenario, outcomes: list[Outcome], out: Path | None) -> dict[str, Any]:
    """Return all figures as JSON; write ``results.json``, ``about.json`` and the report to ``out``.

    Where only sums were kept there is no report.
    """
    told = {
        "format": 1,
        "settings": scenario.to_json(),
        "runs": [outcome.to_json() for outcome in outcomes],
    }
    if out is None:
        return told
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made: {error}.", remedy="Name another --out directory."
        ) from error
    comparison = _comparison(scenario, outcomes)
    write_json(out / "results.json", told)
    about = {
        "command": comparison.command,
        "machine": comparison.machine,
        "created": comparison.created,
    }
    write_json(out / "about.json", about)
    if scenario.rows:
        write_report(comparison, out / "report.html")
    return told


def _comparison(scenario: Scenario, outcomes: list[Outcome]) -> Comparison:
    comparison = Comparison(
        workload=scenario.workload.facts(),
        policies=[outcome.label for outcome in outcomes],
        settings=scenario.to_json(),
        command=shlex.join(["agentrt", *sys.argv[1:]]),
        machine=machine_facts(),
        created=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
        complete=all(outcome.record.complete for outcome in outcomes),
    )
    for outcome in outcomes:
        name, record = outcome.label, outcome.record
        comparison.metrics[name] = {"complete": record.complete} | outcome.figures
        comparison.per_seed[name] = {str(scenario.seed): outcome.figures}
        comparison.runs.append(_named(record, name))
    return comparison


def _named(record: RunRecord, name: str) -> RunRecord:
    """The report tells runs apart by policy: here by policy and placement."""
    return replace(record, policy=name)
