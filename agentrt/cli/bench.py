"""`agentrt bench`: replay workloads under one policy or several, and import public traces."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agentrt.cli.bench_contention import contention
from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.bench.results import Comparison
    from agentrt.bench.settings import BenchSettings, EngineKind
    from agentrt.bench.workload import Contexts

__all__ = ["app"]

app = typer.Typer(
    help="Replay agent workloads and compare policies.", no_args_is_help=True, add_completion=False
)

app.command("contention")(contention)

WorkloadPath = Annotated[
    Path, typer.Argument(help="Workload file, or a file or directory of a known trace format.")
]
Engine = Annotated[str, typer.Option(help="live computes every token; simulated needs no model.")]
Cost = Annotated[str, typer.Option(help="Cost model of the simulated engine: a name or a file.")]
Pool = Annotated[int | None, typer.Option(help="KV pool in tokens.")]
Rate = Annotated[
    float | None, typer.Option(help="Programs per second, drawn by seed. Default: as recorded.")
]
Seed = Annotated[int, typer.Option(help="The arrivals' seed.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many programs.")]
TokenScale = Annotated[float, typer.Option(help="Multiply every length; texts are cut.")]
TimeScale = Annotated[float, typer.Option(help="Multiply gaps and recorded arrivals.")]
MaxWait = Annotated[
    float, typer.Option(help="Seconds after which a waiting turn outranks all others, or inf.")
]
ContextsOption = Annotated[
    str, typer.Option(help="main: main contexts only; all: sub-agents' too, in their caller's gap.")
]
Model = Annotated[
    str | None, typer.Option(help="Model directory (live). Default: a small seeded one.")
]
SandboxOption = Annotated[
    str | None,
    typer.Option(help="Run the workload's commands in: auto, docker, bubblewrap, process (live)."),
]
Out = Annotated[
    Path | None, typer.Option(help="Output directory; the same one again resumes. Default: new.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what --out holds already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@app.command("run")
def run(
    workload: WorkloadPath,
    policy: Annotated[str, typer.Option(help="The policy, such as fcfs or fixed-ttl=30.")] = (
        "fixed-ttl=30"
    ),
    engine: Engine = "live",
    cost: Cost = "reference-8b",
    pool: Pool = None,
    rate: Rate = None,
    seed: Seed = 0,
    limit: Limit = None,
    token_scale: TokenScale = 1.0,
    time_scale: TimeScale = 1.0,
    max_wait: MaxWait = 600.0,
    contexts: ContextsOption = "main",
    model: Model = None,
    sandbox: SandboxOption = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay a workload under one policy.

    Example: agentrt bench run sessions/ --limit 4 --token-scale 0.25
    """
    settings = _settings(
        engine=engine,
        cost=cost,
        pool_tokens=pool,
        rate=rate,
        contexts=contexts,
        limit=limit,
        token_scale=token_scale,
        time_scale=time_scale,
        max_wait=max_wait,
        model=model,
        sandbox=sandbox,
    )
    _compare(workload, settings, [policy], [seed], out, fresh, as_json, quiet)


@app.command("compare")
def compare(
    workload: WorkloadPath,
    policies: Annotated[str, typer.Option(help="Policies, separated by commas.")] = (
        "fcfs,program-fcfs,fixed-ttl=30,continuum"
    ),
    engine: Engine = "live",
    cost: Cost = "reference-8b",
    pool: Pool = None,
    rate: Rate = None,
    seed: Seed = 0,
    seeds: Annotated[
        int, typer.Option(help="So many arrival patterns, from --seed on; figures are averaged.")
    ] = 1,
    limit: Limit = None,
    token_scale: TokenScale = 1.0,
    time_scale: TimeScale = 1.0,
    max_wait: MaxWait = 600.0,
    contexts: ContextsOption = "main",
    model: Model = None,
    sandbox: SandboxOption = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay a workload under several policies, on the same arrivals.

    Example: agentrt bench compare glm.jsonl --engine simulated --rate 0.02 --pool 490000
    --policies fcfs,fixed-ttl=30,continuum --seeds 3 --out results
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}.", remedy="Give --seeds 1 or more.")
    settings = _settings(
        engine=engine,
        cost=cost,
        pool_tokens=pool,
        rate=rate,
        contexts=contexts,
        limit=limit,
        token_scale=token_scale,
        time_scale=time_scale,
        max_wait=max_wait,
        model=model,
        sandbox=sandbox,
    )
    every = list(range(seed, seed + seeds))
    _compare(workload, settings, policies.split(","), every, out, fresh, as_json, quiet)


@app.command("import")
def import_trace(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="miniswe or mooncake.")],
    file: Annotated[Path, typer.Argument(help="A trace file, or a directory of *.jsonl files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The workload file to write.")],
    as_json: AsJson = False,
) -> None:
    """Turn a public trace into a workload file.

    Example: agentrt bench import miniswe sessions/ -o sessions.jsonl
    """
    from agentrt.bench.importers import import_workload
    from agentrt.bench.parse import write_workload

    programs = import_workload(form, file).programs
    write_workload(programs, out)
    turns = sum(len(program.turns) for program in programs)
    if as_json:
        _print_json({"programs": len(programs), "turns": turns, "out": str(out)})
    else:
        Console().print(f"{len(programs)} programs, {turns} turns: {out}", highlight=False)


def _settings(*, engine: str, contexts: str, **rest: Any) -> BenchSettings:
    from agentrt.bench.settings import BenchSettings

    return BenchSettings(engine=_engine(engine), contexts=_contexts(contexts), **rest)


def _engine(name: str) -> EngineKind:
    known: dict[str, EngineKind] = {"live": "live", "simulated": "simulated"}
    if name in known:
        return known[name]
    raise ConfigError(f"There is no engine {name!r}.", remedy="Choose one of: live, simulated.")


def _contexts(name: str) -> Contexts:
    known: dict[str, Contexts] = {"main": "main", "all": "all"}
    if name in known:
        return known[name]
    raise ConfigError(f"--contexts is {name!r}.", remedy="Choose one of: main, all.")


def _compare(
    path: Path,
    settings: BenchSettings,
    policies: Sequence[str],
    seeds: Sequence[int],
    out: Path | None,
    fresh: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from agentrt.bench.compare import Comparer, check_policies
    from agentrt.bench.importers import load_workload
    from agentrt.bench.interrupt import Interrupt
    from agentrt.bench.progress import ComparisonView, Silent
    from agentrt.bench.store import ResultStore

    names = check_policies(policies)
    workload = load_workload(path)
    chosen = settings.select(workload)
    where = out or _new_directory(workload.name)
    store = ResultStore(where, settings.to_json(chosen), fresh=fresh)
    view = ComparisonView(Console(stderr=True), names, list(seeds))
    observer = Silent() if quiet else view
    with Interrupt() as interrupt:
        comparer = Comparer(workload, settings, names, seeds, store, observer, stop=interrupt.asked)
        if quiet:
            comparison = comparer.run()
        else:
            with view:
                comparison = comparer.run()
    _finish(comparison, store, comparer.wall_seconds, as_json)
    if not comparison.complete:
        _say_how_to_resume(where, named=out is not None)
        raise typer.Exit(130)
    _check_outcomes(comparison)


def _new_directory(name: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("agentrt-results") / f"{name}-{stamp}"


def _finish(comparison: Comparison, store: Any, seconds: dict[str, float], as_json: bool) -> None:
    """Write results, report and summary."""
    from agentrt.bench.machine import machine_facts
    from agentrt.bench.progress import summary_table
    from agentrt.bench.report import write_report

    comparison.command = shlex.join(["agentrt", *sys.argv[1:]])
    comparison.machine = machine_facts()
    comparison.created = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
    store.save_comparison(comparison, seconds)
    report = store.directory / "report.html"
    write_report(comparison, report)
    if as_json:
        _print_json(comparison.to_json() | {"out": str(store.directory), "report": str(report)})
        return
    console = Console()
    console.print(summary_table(comparison))
    console.print(f"results: {store.directory / 'results.json'}", highlight=False, soft_wrap=True)
    console.print(f"report:  {report}", highlight=False, soft_wrap=True)


def _say_how_to_resume(where: Path, *, named: bool) -> None:
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


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
