"""What one report says, before it becomes HTML: runs, figures, and the facts around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrt.bench.metrics import measure
from agentrt.bench.records import ProgramRecord, RunRecord
from agentrt.bench.report_data import all_programs
from agentrt.bench.report_figures import best_policy, comparison_sentence
from agentrt.bench.report_html import duration, tokens
from agentrt.bench.results import Comparison, Metrics

__all__ = ["VERDICT", "Page", "comparison_page", "run_page"]

VERDICT = "verdict"
"""Name of the tool record that is the judge's own test run, not a call of the agent's."""


@dataclass(frozen=True, slots=True)
class Page:
    """The content of one report.

    Attributes:
        kicker: the few words above the title.
        policies: names in the order of every table and plot.
        metrics: figures per policy.
        runs: the records, in any order; the time line offers each of them.
        best: the policy whose run is shown first.
        facts: what was run and on what, as (name, value).
        settings: everything else that the figures depend on, shown folded.
        intervals: the 95 % interval of the mean, by policy and figure.
        oracle_distance: ratios to the oracles, by policy, oracle and figure.
        warning: what a reader must know before believing the figures, or empty.
    """

    kicker: str
    title: str
    headline: str
    policies: Sequence[str]
    metrics: Mapping[str, Metrics]
    runs: Sequence[RunRecord]
    best: str | None = None
    command: str = ""
    facts: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    intervals: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    oracle_distance: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    warning: str = ""

    @property
    def is_comparison(self) -> bool:
        """Whether there are several policies to compare."""
        return len(self.policies) > 1

    def runs_of(self, policy: str) -> list[RunRecord]:
        """Return the runs of one policy, by seed."""
        return sorted((run for run in self.runs if run.policy == policy), key=lambda run: run.seed)


def comparison_page(comparison: Comparison) -> Page:
    """Return the page of a comparison of policies."""
    measured = [name for name in comparison.policies if name in comparison.metrics]
    policies = measured or list(comparison.policies)
    return Page(
        kicker="Policy comparison" if len(policies) > 1 else "Benchmark",
        title=comparison.workload.name,
        headline=comparison_sentence(policies, comparison.metrics),
        policies=policies,
        metrics=comparison.metrics,
        runs=comparison.runs,
        best=best_policy(policies, comparison.metrics),
        command=comparison.command,
        facts=[*_workload_facts(comparison), *_run_facts(comparison.runs)],
        settings=comparison.settings,
        machine=comparison.machine,
        created=comparison.created,
        intervals=comparison.intervals,
        oracle_distance=comparison.oracle_distance,
        warning=_comparison_warning(comparison),
    )


def run_page(run: RunRecord, *, title: str, headline: str) -> Page:
    """Return the page of a single run."""
    facts = [("Programs", f"{len(all_programs(run)):,}"), ("Turns", f"{len(run.turns):,}")]
    settings = dict(run.settings)
    command = settings.pop("command", "")
    machine = settings.pop("machine", {})
    return Page(
        kicker=f"agentrt run, {run.engine} engine",
        title=title,
        headline=headline,
        policies=[run.policy],
        metrics={run.policy: measure(run)},
        runs=[run],
        best=run.policy,
        command=command if isinstance(command, str) else "",
        facts=[("Workload", run.workload), *facts, ("Policy", run.policy), *_run_facts([run])],
        settings=settings,
        machine=machine if isinstance(machine, Mapping) else {"machine": machine},
        warning="" if run.complete else _INTERRUPTED,
    )


_INTERRUPTED = "This run was interrupted: the figures cover only what had finished by then."


def _comparison_warning(comparison: Comparison) -> str:
    missing = [name for name in comparison.policies if name not in comparison.metrics]
    if missing:
        names = ", ".join(missing)
        return f"Interrupted before {names} had run: the figures are of what was measured by then."
    if not comparison.complete or not all(run.complete for run in comparison.runs):
        return _INTERRUPTED
    failed = sum(_failed(run.programs) for run in comparison.runs)
    if failed:
        return f"{failed:,} programs failed or were cancelled; completion times leave them out."
    return ""


def _failed(programs: Sequence[ProgramRecord]) -> int:
    return sum(row.outcome in ("failed", "cancelled") for row in programs)


def _workload_facts(comparison: Comparison) -> list[tuple[str, str]]:
    load = comparison.workload
    return [
        ("Workload", f"{load.programs:,} programs, {load.turns:,} turns"),
        ("Prompts", f"{tokens(load.prompt_tokens)} tokens"),
        ("Outputs", f"{tokens(load.output_tokens)} tokens"),
        ("Tools", duration(load.tool_seconds)),
        ("Replay", "texts and commands" if load.literal else "numbers only"),
    ]


def _run_facts(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    if not runs:
        return []
    seeds = sorted({run.seed for run in runs})
    facts = [
        ("Engine", runs[0].engine),
        ("KV pool", f"{tokens(runs[0].pool_tokens)} tokens"),
        ("Seed" if len(seeds) == 1 else "Seeds", ", ".join(str(seed) for seed in seeds)),
    ]
    settings = runs[0].settings
    known = (("cost", "Cost model"), ("rate", "Arrivals per second"), ("sandbox", "Sandbox"))
    facts += [(name, _brief(settings[key])) for key, name in known if settings.get(key) is not None]
    return facts


def _brief(value: Any) -> str:
    """Return a setting in a word: of a whole cost model, its name."""
    return str(value.get("name", "custom")) if isinstance(value, Mapping) else str(value)
