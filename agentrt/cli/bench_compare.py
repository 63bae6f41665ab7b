"""`agentrt bench compare`: several policies on the same arrivals, in one cell or a grid of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from agentrt.cli.bench_grid import play_grid
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
    HostPool,
    Jobs,
    Limit,
    MaxWait,
    Model,
    Out,
    Pool,
    Pools,
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
    parse_pools,
    parse_weights,
)
from agentrt.cli.bench_run import Order, make_settings, play, seed_list, show
from agentrt.errors import ConfigError

__all__ = ["compare"]


def compare(
    workload: WorkloadPath,
    policies: Annotated[
        str,
        typer.Option(help="Policies, separated by commas; fixed-ttl alone is swept; all: each."),
    ] = "fcfs,program-fcfs,fixed-ttl=30,continuum",
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Add the oracles and the distance to them (simulated).")
    ] = False,
    engine: Engine = "live",
    cost: Cost = "reference-8b",
    pool: Pool = None,
    pools: Pools = None,
    rate: Rate = None,
    rates: Annotated[str | None, typer.Option(help="Several rates, separated by commas.")] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int, typer.Option(help="So many arrival patterns, from --seed on; figures are averaged.")
    ] = 1,
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
    sandbox: SandboxOption = None,
    jobs: Jobs = 1,
    step_times: Annotated[
        bool,
        typer.Option("--step-times", help="Measure the scheduler's own time a step (simulated)."),
    ] = False,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay a workload under several policies, on the same arrivals.

    Several pools or rates make a grid: each cell in a directory of its own, and a table of all.

    Example: agentrt bench compare glm.jsonl --engine simulated --rate 0.02 --pool 490000
    --policies all --oracle --seeds 5 --jobs 2 --out results
    """
    from agentrt.bench.importers import load_workload
    from agentrt.bench.policies import expand_policies

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
        sandbox=sandbox,
    )
    names = expand_policies(policies, oracle=oracle)
    order = Order(names, seed_list(seed, seeds), out, fresh, quiet, jobs, step_times)
    cells = [
        replace(settings, pool_tokens=size, rate=one)
        for size in parse_pools(pool, pools)
        for one in _parse_rates(rate, rates)
    ]
    chosen = load_workload(workload)
    if len(cells) == 1:
        show(*play(chosen, cells[0], order), as_json)
    else:
        play_grid(chosen, cells, order, as_json)


def _parse_rates(rate: float | None, rates: str | None) -> list[float | None]:
    """Return the rates of ``--rate`` or ``--rates``; one that is None where neither is given."""
    if rates is None:
        return [rate]
    if rate is not None:
        raise ConfigError("Both --rate and --rates are given.", remedy="Give one of them.")
    try:
        return list(dict.fromkeys(float(one) for one in rates.split(",")))
    except ValueError as error:
        raise ConfigError(
            f"--rates is {rates!r}.", remedy="Give programs a second, such as 0.0067,0.02."
        ) from error
