"""What `agentrt bench run`, `compare` and `ablate` share: play, write, show, say how to go on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.bench.results import Comparison
    from agentrt.bench.settings import BenchSettings, EngineKind
    from agentrt.bench.workload import Contexts, Workload

__all__ = [
    "Order",
    "command_text",
    "make_settings",
    "new_directory",
    "now_text",
    "parse_contexts",
    "play",
    "print_json",
    "say_how_to_resume",
    "seed_list",
    "show",
    "stamp",
]


@dataclass(frozen=True, slots=True)
class Order:
    """What to run and how to tell of it."""

    policies: Sequence[str]
    seeds: Sequence[int]
    out: Path | None = None
    fresh: bool = False
    quiet: bool = False
    jobs: int = 1
    timed: bool = False


def make_settings(*, engine: str, contexts: str, **rest: Any) -> BenchSettings:
    """Return the settings of a command's options."""
    from agentrt.bench.settings import BenchSettings

    return BenchSettings(engine=_engine(engine), contexts=parse_contexts(contexts), **rest)


def _engine(name: str) -> EngineKind:
    known: dict[str, EngineKind] = {"live": "live", "simulated": "simulated"}
    if name in known:
        return known[name]
    raise ConfigError(f"There is no engine {name!r}.", remedy="Choose one of: live, simulated.")


def parse_contexts(name: str) -> Contexts:
    """Return the contexts that ``--contexts`` names."""
    known: dict[str, Contexts] = {"main": "main", "all": "all"}
    if name in known:
        return known[name]
    raise ConfigError(f"--contexts is {name!r}.", remedy="Choose one of: main, all.")


def seed_list(first: int, count: int) -> list[int]:
    """Return the seeds of ``--seed`` and ``--seeds``."""
    if count < 1:
        raise ConfigError(f"--seeds is {count}.", remedy="Give --seeds 1 or more.")
    return list(range(first, first + count))


def new_directory(name: str) -> Path:
    """Return a directory that does not exist yet, by name and time."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("agentrt-results") / f"{name}-{now}"


def play(workload: Workload, settings: BenchSettings, order: Order) -> tuple[Comparison, Path]:
    """Run what is missing; write results and report; return the comparison and where it is.

    Raises:
        typer.Exit: it was interrupted (130).
    """
    from agentrt.bench.compare import Comparer
    from agentrt.bench.interrupt import Interrupt
    from agentrt.bench.progress import ComparisonView, Silent
    from agentrt.bench.report import write_report
    from agentrt.bench.store import ResultStore

    _check_engine(settings, order)
    where = order.out or new_directory(workload.name)
    told = settings.to_json(settings.select(workload))
    store = ResultStore(where, told, fresh=order.fresh)
    view = ComparisonView(Console(stderr=True), list(order.policies), list(order.seeds))
    comparer = Comparer(
        workload,
        settings,
        order.policies,
        order.seeds,
        store,
        Silent() if order.quiet else view,
        jobs=order.jobs,
        timed=order.timed,
    )
    with Interrupt() as interrupt:
        comparer.stop = interrupt.asked
        if order.quiet:
            comparison = comparer.run()
        else:
            with view:
                comparison = comparer.run()
    stamp(comparison)
    store.save_comparison(comparison, comparer.wall_seconds, comparer.step_times)
    write_report(comparison, where / "report.html")
    if not comparison.complete:
        say_how_to_resume(where, named=order.out is not None)
    return comparison, where


def _check_engine(settings: BenchSettings, order: Order) -> None:
    from agentrt.bench.policies import ORACLES

    if settings.engine == "simulated":
        return
    if oracles := [name for name in order.policies if name in ORACLES]:
        raise ConfigError(
            f"{oracles[0]} knows what happens next, which only the simulated engine can tell.",
            remedy="Add --engine simulated, or leave the oracles out.",
        )
    for flag, given in (("--jobs", order.jobs != 1), ("--step-times", order.timed)):
        if given:
            raise ConfigError(
                f"{flag} is for the simulated engine.", remedy="Leave it out for live runs."
            )


def stamp(comparison: Comparison) -> None:
    """Note the command line, the machine and the time."""
    from agentrt.bench.machine import machine_facts

    comparison.command = command_text()
    comparison.machine = machine_facts()
    comparison.created = now_text()


def command_text() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["agentrt", *sys.argv[1:]])


def now_text() -> str:
    """Return the time in ISO-8601 UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def show(comparison: Comparison, where: Path, as_json: bool) -> None:
    """Print the summary, or everything as JSON; exit 130 if interrupted, 1 if nothing ran."""
    from agentrt.bench.progress import oracle_table, summary_table

    report = where / "report.html"
    if as_json:
        print_json(comparison.to_json() | {"out": str(where), "report": str(report)})
    else:
        console = Console()
        console.print(summary_table(comparison))
        if comparison.oracle_distance:
            console.print(oracle_table(comparison))
        _print_losses(console, comparison)
        console.print(f"results: {where / 'results.json'}", highlight=False, soft_wrap=True)
        console.print(f"report:  {report}", highlight=False, soft_wrap=True)
    if not comparison.complete:
        raise typer.Exit(130)
    _check_outcomes(comparison)


def _print_losses(console: Console, comparison: Comparison) -> None:
    for policy, lost in comparison.losses.items():
        console.print(
            f"loses to fcfs: {policy}, {lost['ratio']:.2f} times its mean completion time, in "
            f"{lost['seeds_worse']} of {lost['seeds']} seeds",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def say_how_to_resume(where: Path, *, named: bool) -> None:
    """Say on stderr that finished runs are kept, and how to go on; ``named``: by --out."""
    again = "Run the same command again" if named else f"Run it again with --out {where}"
    Console(stderr=True).print(
        f"interrupted: finished runs are kept in {where}. {again} to go on from there.",
        highlight=False,
        soft_wrap=True,
    )


def _check_outcomes(comparison: Comparison) -> None:
    """Say which programs failed; exit 1 if a run has no program that got through."""
    console = Console(stderr=True)
    empty = False
    for run_record in comparison.runs:
        failed = [row for row in run_record.programs if row.outcome == "failed"]
        empty |= len(failed) == len(run_record.programs)
        if failed:
            console.print(
                f"warning: {run_record.policy} seed {run_record.seed}: {len(failed)} programs "
                f"failed; {failed[0].program}: {failed[0].detail}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
    if empty:
        raise typer.Exit(1)


def print_json(data: Any) -> None:
    """Write one JSON object to stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
