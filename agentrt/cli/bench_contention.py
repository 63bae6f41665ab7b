"""`agentrt bench contention`: three programs under one memory limit, policy by policy."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.bench.contention.plan import Plan
    from agentrt.bench.contention.results import Outcome
    from agentrt.bench.contention.store import ContentionStore

__all__ = ["contention"]


def contention(
    limit: Annotated[
        str | None, typer.Option(help="Memory of all programs, such as 1100M. Default: published.")
    ] = None,
    policies: Annotated[str, typer.Option(help="Policies, separated by commas, or all.")] = "all",
    runs: Annotated[int, typer.Option(help="Runs of each policy.")] = 10,
    scenario: Annotated[
        str, typer.Option(help="dask-github3 (three of a size) or burst (the high one has spikes).")
    ] = "dask-github3",
    speed: Annotated[
        float | None, typer.Option(help="Times as fast as recorded. Default: as published.")
    ] = None,
    scale: Annotated[
        float,
        typer.Option(help="Multiply all sizes; the limit too, but for the interpreters' part."),
    ] = 1.0,
    curves: Annotated[
        Path | None, typer.Option(help="Folder of the memory curves, NAME.json each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output directory; the same one again resumes.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what --out holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Replay one program of high and two of low priority in too little memory.

    Each policy decides who waits, who is slowed down and who is killed; every role also runs alone
    in each round, as the base of the ratios. Needs root, or a delegated cgroup.

    Example: agentrt bench contention --limit 1100M --policies all --runs 10 --out contention
    """
    from agentrt.bench.contention.store import ContentionStore

    plan = _plan(limit, policies, runs, scenario, speed, scale, curves)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    where = out or Path("agentrt-results") / f"contention-{stamp}"
    store = ContentionStore(where, plan.to_json(), fresh=fresh)
    outcomes = _measure(plan, store, quiet=quiet or as_json)
    results = _results(plan, outcomes)
    _write(results, outcomes, where)
    _tell(results, where, as_json)
    if not results["complete"]:
        Console(stderr=True).print(
            f"interrupted: what had ended is kept in {where}. Give --out {where} to go on.",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)


def _plan(
    limit: str | None,
    policies: str,
    runs: int,
    scenario: str,
    speed: float | None,
    scale: float,
    curves: Path | None,
) -> Plan:
    from agentrt.bench.contention.curves import (
        default_curves,
        load_curve,
        parse_size,
        scenario_named,
    )
    from agentrt.bench.contention.plan import Plan, scaled_limit
    from agentrt.bench.contention.policies import policy_names

    chosen = scenario_named(scenario)
    for flag, value in (("--runs", runs), ("--scale", scale), ("--speed", speed or 1.0)):
        if not value > 0:
            raise ConfigError(f"{flag} is {value}.", remedy=f"Give {flag} a number above 0.")
    names = dict.fromkeys(role.curve for role in chosen.roles)
    return Plan(
        scenario=chosen,
        curves={name: load_curve(curves or default_curves(), name) for name in names},
        limit=scaled_limit(parse_size(limit) if limit else chosen.limit, scale, len(chosen.roles)),
        speed=speed or chosen.speed,
        scale=scale,
        policies=tuple(policy_names(policies)),
        runs=runs,
    )


def _measure(plan: Plan, store: ContentionStore, *, quiet: bool) -> list[Outcome]:
    from agentrt.bench.contention.experiment import Experiment
    from agentrt.bench.interrupt import Interrupt

    console = Console(stderr=True)
    with (
        Interrupt() as interrupt,
        Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        ) as progress,
    ):
        view = _View(progress, console, quiet=quiet)
        experiment = Experiment(plan, store, view, stop=interrupt.asked)
        view.begin(experiment.planned)
        return experiment.run()


class _View:
    """Progress on a terminal, and one line a cell."""

    def __init__(self, progress: Progress, console: Console, *, quiet: bool) -> None:
        self._progress = progress
        self._console = console
        self._quiet = quiet

    def begin(self, cells: int) -> None:
        """So many cells are to come."""
        self._task = self._progress.add_task("", total=cells)

    def started(self, policy: str, run: int) -> None:
        """A cell begins."""
        self._progress.update(self._task, description=f"run {run}: {policy}")

    def finished(self, outcome: Outcome, reused: bool) -> None:
        """A cell ended."""
        from agentrt.bench.contention.figures import outcome_line

        self._progress.advance(self._task)
        if not self._quiet:
            kept = " (kept from an earlier try)" if reused else ""
            self._console.print(
                f"run {outcome.run} {outcome.policy}: {outcome_line(outcome.roles)}{kept}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )


def _results(plan: Plan, outcomes: list[Outcome]) -> dict[str, Any]:
    from agentrt.bench.contention.summary import results_json
    from agentrt.bench.machine import machine_facts
    from agentrt.resources.cgroup import read_layout

    about = {
        "command": shlex.join(["agentrt", *sys.argv[1:]]),
        "machine": machine_facts(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return results_json(plan, outcomes, layout=read_layout(), about=about)


def _write(results: dict[str, Any], outcomes: list[Outcome], where: Path) -> None:
    from agentrt.bench.contention.report import write_report
    from agentrt.bench.store import write_json

    write_json(where / "results.json", results)
    write_report(results, outcomes, where / "report.html")


def _tell(results: dict[str, Any], where: Path, as_json: bool) -> None:
    from agentrt.bench.contention.figures import headline, summary_table

    if as_json:
        told = results | {"out": str(where), "report": str(where / "report.html")}
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        return
    console = Console()
    if results["policies"]:
        console.print(summary_table(results["policies"]))
        console.print(headline(results["policies"]), highlight=False)
    console.print(results["changes"], highlight=False, style="dim")
    for name in ("results.json", "report.html"):
        console.print(str(where / name), highlight=False, soft_wrap=True)
