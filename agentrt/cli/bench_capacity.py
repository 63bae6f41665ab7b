"""`agentrt bench capacity`: the highest arrival rate that each policy serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agentrt.cli.bench_options import (
    Arrivals,
    AsJson,
    ContextsOption,
    Cost,
    Deadline,
    Fresh,
    GapCv,
    GapScale,
    HostPool,
    Jobs,
    Limit,
    MaxWait,
    Out,
    Pool,
    Pools,
    Quiet,
    Seed,
    TellTurns,
    TokenScale,
    TurnFactor,
    Weights,
    WorkloadPath,
    parse_pools,
    parse_weights,
)
from agentrt.cli.bench_run import (
    command_text,
    new_directory,
    now_text,
    parse_contexts,
    print_json,
    say_how_to_resume,
    seed_list,
)

if TYPE_CHECKING:
    from agentrt.bench.capacity import CapacityGoal
    from agentrt.bench.capacity_report import CapacityTable
    from agentrt.bench.settings import BenchSettings
    from agentrt.bench.workload import Workload

__all__ = ["capacity"]


def capacity(
    workload: WorkloadPath,
    policies: Annotated[
        str,
        typer.Option(help="Policies, separated by commas; fixed-ttl alone is swept; all: each."),
    ] = "fcfs,program-fcfs,fixed-ttl",
    pool: Pool = None,
    pools: Pools = None,
    slowdown: Annotated[
        float, typer.Option(help="The P90 slowdown, mean over the seeds, that still counts.")
    ] = 2.0,
    seeds: Annotated[int, typer.Option(help="So many arrival patterns, from --seed on.")] = 4,
    seed: Seed = 0,
    resolution: Annotated[
        float, typer.Option(help="How close the rate is found, in programs a second.")
    ] = 0.0005,
    cost: Cost = "reference-8b",
    limit: Limit = None,
    token_scale: TokenScale = 1.0,
    max_wait: MaxWait = 600.0,
    contexts: ContextsOption = "main",
    host_pool: HostPool = 0,
    weights: Weights = None,
    arrivals: Arrivals = None,
    gap_scale: GapScale = 1.0,
    gap_cv: GapCv = None,
    turn_factor: TurnFactor = 1,
    deadline: Deadline = None,
    tell_turns: TellTurns = False,
    jobs: Jobs = 1,
    out: Out = None,
    fresh: Fresh = False,
    rerun: Annotated[
        str | None, typer.Option(help="Forget what --out holds of these policies.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the highest arrival rate at which programs are at most so much slower than alone.

    Runs in virtual time. A run is kept per policy, rate and seed, so that the same --out goes on
    where it was; after a change to a policy name it in --rerun.

    Example: agentrt bench capacity glm.jsonl --policies fcfs,fixed-ttl --pool 490000 --jobs 2
    --out capacity
    """
    from agentrt.bench.capacity import CapacityGoal
    from agentrt.bench.importers import load_workload
    from agentrt.bench.policies import expand_policies
    from agentrt.bench.settings import BenchSettings

    names = expand_policies(policies)
    forget = None if fresh else (expand_policies(rerun) if rerun else [])
    goal = CapacityGoal(slowdown, tuple(seed_list(seed, seeds)), resolution)
    every = [
        BenchSettings(
            engine="simulated",
            cost=cost,
            pool_tokens=size,
            contexts=parse_contexts(contexts),
            limit=limit,
            token_scale=token_scale,
            max_wait=max_wait,
            host_tokens=host_pool,
            weights=parse_weights(weights),
            arrivals=arrivals,
            gap_scale=gap_scale,
            gap_cv=gap_cv,
            turn_factor=turn_factor,
            deadline=deadline,
            tell_turns=tell_turns,
        )
        for size in parse_pools(pool, pools)
    ]
    chosen = every[0].select(load_workload(workload))
    where = out or new_directory(f"{chosen.name}-capacity")
    table = _search(chosen, every, goal, names, forget, where, jobs, quiet)
    _show(table, where, as_json)


def _search(
    workload: Workload,
    every: list[BenchSettings],
    goal: CapacityGoal,
    names: list[str],
    forget: list[str] | None,
    where: Path,
    jobs: int,
    quiet: bool,
) -> CapacityTable:
    from agentrt.bench.capacity import CapacitySearch
    from agentrt.bench.capacity_report import CapacityTable
    from agentrt.bench.interrupt import Interrupt
    from agentrt.bench.isolated import isolated_seconds
    from agentrt.bench.jobs import open_jobs
    from agentrt.bench.probes import ProbeStore
    from agentrt.simulation.cost import load_cost

    isolated = isolated_seconds(workload.programs, load_cost(every[0].cost))
    table = CapacityTable(workload.facts(), goal, names)
    console = Console(stderr=True, quiet=quiet)
    with Interrupt() as interrupt, open_jobs(jobs, interrupt.asked) as room:
        for settings in every:
            size = settings.pool or 0
            store = ProbeStore(where, settings.to_json(workload), forget)
            search = CapacitySearch(
                workload,
                isolated,
                settings,
                goal,
                store,
                stop=interrupt.asked,
                on_rate=_teller(console, size),
            )
            table.add(settings.to_json(workload), size, search.run(names, room))
        table.complete = not interrupt.asked()
    return table


def _teller(console: Console, pool: int) -> Callable[[str, float, bool], None]:
    def tell(policy: str, rate: float, served: bool) -> None:
        verdict = "served" if served else "too much"
        text = f"pool {pool:,} {policy}: {rate:.5f}/s is {verdict}"
        console.print(text, highlight=False, markup=False)

    return tell


def _show(table: CapacityTable, where: Path, as_json: bool) -> None:
    from agentrt.bench.machine import machine_facts
    from agentrt.bench.report_grid import write_capacity_report
    from agentrt.bench.store import write_json

    results, report = where / "capacity.json", where / "capacity.html"
    write_json(results, table.to_json())
    write_capacity_report(
        table, report, command=command_text(), machine=machine_facts(), created=now_text()
    )
    if as_json:
        print_json(table.to_json() | {"out": str(where), "report": str(report)})
    else:
        console = Console()
        for one in table.rich_tables():
            console.print(one)
        console.print(f"results: {results}", highlight=False, soft_wrap=True)
        console.print(f"report:  {report}", highlight=False, soft_wrap=True)
    if not table.complete:
        say_how_to_resume(where, named=True)
        raise typer.Exit(130)
