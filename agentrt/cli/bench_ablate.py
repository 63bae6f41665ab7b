"""`agentrt bench ablate`: what each ingredient of a policy is worth."""

from __future__ import annotations

from typing import Annotated

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
    Quiet,
    Rate,
    Seed,
    TellTurns,
    TimeScale,
    TokenScale,
    TurnFactor,
    Weights,
    WorkloadPath,
    parse_weights,
)
from agentrt.cli.bench_run import Order, make_settings, play, print_json, seed_list

__all__ = ["ablate"]


def ablate(
    workload: WorkloadPath,
    policy: Annotated[str, typer.Option(help="The policy to take apart.")] = "agentrt",
    cost: Cost = "reference-8b",
    pool: Pool = None,
    rate: Rate = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="So many arrival patterns, from --seed on.")] = 3,
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
    jobs: Jobs = 1,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a policy as it is, without each of its ingredients, and without all; in virtual time.

    Example: agentrt bench ablate glm.jsonl --policy agentrt --rate 0.02 --pool 490000 --seeds 5
    --out ablation
    """
    from agentrt.bench.ablate import Ablation, ablated_policies
    from agentrt.bench.importers import load_workload
    from agentrt.bench.policies import check_policies
    from agentrt.bench.report_grid import write_ablation_report
    from agentrt.bench.store import write_json

    settings = make_settings(
        engine="simulated",
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
    )
    policies = ablated_policies(policy)
    names = check_policies(list(policies.values()))
    order = Order(names, seed_list(seed, seeds), out, fresh, quiet, jobs)
    comparison, where = play(load_workload(workload), settings, order)
    ablation = Ablation(policies, comparison)
    write_json(where / "ablation.json", ablation.to_json())
    write_ablation_report(ablation, where / "ablation.html")
    if as_json:
        print_json(ablation.to_json() | {"out": str(where)})
    else:
        console = Console()
        console.print(ablation.table())
        for name, file in (("results", "ablation.json"), ("report", "ablation.html")):
            console.print(f"{name}: {where / file}", highlight=False, soft_wrap=True)
    if not comparison.complete:
        raise typer.Exit(130)
