"""`agentrt bench`: replay workloads under one policy or several, and import public traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentrt.cli import bench_ablate, bench_capacity, bench_compare
from agentrt.cli.bench_contention import contention
from agentrt.cli.bench_draft import draft, masks
from agentrt.cli.bench_options import (
    Arrivals,
    AsJson,
    ContextsOption,
    Cost,
    Deadline,
    Engine,
    Fresh,
    GapCv,
    GapScale,
    HostKV,
    HostPool,
    Limit,
    MaxWait,
    Model,
    Out,
    Pool,
    Quiet,
    Rate,
    SandboxOption,
    Seed,
    TellTurns,
    TimeScale,
    TokenScale,
    TurnFactor,
    Weights,
    WorkloadPath,
    parse_weights,
)
from agentrt.cli.bench_run import Order, make_settings, play, print_json, show
from agentrt.cli.bench_streaming import streaming

__all__ = ["app"]

app = typer.Typer(
    help="Replay agent workloads and compare policies.", no_args_is_help=True, add_completion=False
)

app.command("compare")(bench_compare.compare)
app.command("ablate")(bench_ablate.ablate)
app.command("capacity")(bench_capacity.capacity)
app.command("contention")(contention)
app.command("streaming")(streaming)
app.command("draft")(draft)
app.command("masks")(masks)


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
    host_pool: HostPool = 0,
    weights: Weights = None,
    arrivals: Arrivals = None,
    gap_scale: GapScale = 1.0,
    gap_cv: GapCv = None,
    turn_factor: TurnFactor = 1,
    deadline: Deadline = None,
    tell_turns: TellTurns = False,
    model: Model = None,
    host_kv: HostKV = None,
    sandbox: SandboxOption = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay a workload under one policy.

    Example: agentrt bench run sessions/ --limit 4 --token-scale 0.25
    """
    from agentrt.resources.units import parse_size

    settings = make_settings(
        engine=engine,
        cost=cost,
        pool_tokens=pool,
        rate=rate,
        contexts=contexts,
        limit=limit,
        token_scale=token_scale,
        time_scale=time_scale,
        max_wait=max_wait,
        host_tokens=host_pool,
        weights=parse_weights(weights),
        arrivals=arrivals,
        gap_scale=gap_scale,
        gap_cv=gap_cv,
        turn_factor=turn_factor,
        deadline=deadline,
        tell_turns=tell_turns,
        model=model,
        host_kv_bytes=parse_size(host_kv) if host_kv else 0,
        sandbox=sandbox,
    )
    from agentrt.bench.importers import load_workload
    from agentrt.bench.policies import check_policies

    order = Order(check_policies([policy]), [seed], out, fresh, quiet)
    show(*play(load_workload(workload), settings, order), as_json)


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
        print_json({"programs": len(programs), "turns": turns, "out": str(out)})
    else:
        Console().print(f"{len(programs)} programs, {turns} turns: {out}", highlight=False)
