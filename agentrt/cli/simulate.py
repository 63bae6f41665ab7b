"""`agentrt simulate`: a workload on a cluster of many workers, under a virtual clock."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agentrt.cli.bench_options import (
    AsJson,
    ContextsOption,
    HostPool,
    Limit,
    MaxWait,
    Pool,
    Quiet,
    Rate,
    Seed,
    WorkloadPath,
)
from agentrt.cli.bench_run import parse_contexts
from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.simulation.cost import CostModel
    from agentrt.simulation.scenario import Outcome
    from agentrt.simulation.session import Scenario

__all__ = ["command"]

Workers = Annotated[int, typer.Option(help="Engines, each with a KV pool and a host of its own.")]
Split = Annotated[
    str | None,
    typer.Option(help="PREFILL:DECODE workers instead of --workers: KV crosses the network."),
]
Gpu = Annotated[str, typer.Option(help="a100, h100 or h200: costs from published figures.")]
Model = Annotated[str, typer.Option(help="The model on it, such as qwen3-8b or llama-3.1-8b.")]
CostOption = Annotated[
    str | None,
    typer.Option(help="A cost model by name, or a file of `agentrt cost fit`; not --gpu."),
]
Policies = Annotated[
    str, typer.Option("--policies", "--policy", help="Policies, separated by commas.")
]
Placements = Annotated[
    str, typer.Option("--placements", "--placement", help="Placements, separated by commas.")
]
Steal = Annotated[
    bool | None, typer.Option("--steal/--no-steal", help="Default: as the placement was published.")
]
Programs = Annotated[
    int | None, typer.Option(help="Draw so many programs from the workload, by seed.")
]
Page = Annotated[int, typer.Option(help="Tokens of a page: large ones are accounted for faster.")]
Bandwidth = Annotated[float, typer.Option(help="Gbit/s of a worker's network link.")]
Latency = Annotated[float, typer.Option(help="Milliseconds of a transfer beside its bytes.")]
ToolSlots = Annotated[int | None, typer.Option(help="Tool calls at once on a worker's host.")]
ToolMemory = Annotated[float | None, typer.Option(help="GiB for tool calls on a worker's host.")]
ToolDefault = Annotated[float, typer.Option(help="GiB of a tool call of which none is recorded.")]
Scale = Annotated[
    str | None, typer.Option(help="SECONDS:+N or SECONDS:-N workers, separated by commas.")
]
Out = Annotated[Path | None, typer.Option(help="Directory for results.json and report.html.")]


def command(
    workload: WorkloadPath,
    workers: Workers = 1,
    split: Split = None,
    gpu: Gpu = "h200",
    model: Model = "qwen3-8b",
    cost: CostOption = None,
    pool: Pool = None,
    policies: Policies = "fixed-ttl=30",
    placements: Placements = "agentrt",
    steal: Steal = None,
    programs: Programs = None,
    rate: Rate = None,
    seed: Seed = 0,
    limit: Limit = None,
    contexts: ContextsOption = "main",
    max_wait: MaxWait = 600.0,
    page: Page = 128,
    host_pool: HostPool = 0,
    bandwidth: Bandwidth = 100.0,
    latency: Latency = 1.0,
    tool_slots: ToolSlots = None,
    tool_memory: ToolMemory = None,
    tool_default: ToolDefault = 0.5,
    scale: Scale = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Replay a workload on many workers under a virtual clock: no model, no GPU.

    Example: agentrt simulate glm.jsonl --workers 64 --gpu h200 --programs 10000 --rate 2
    """
    from agentrt.simulation.scenario import ClusterSettings
    from agentrt.simulation.session import load_scenario, write_outcomes

    model_cost, tokens = _cost(cost, gpu, model)
    first, second = _groups(workers, split)
    settings = ClusterSettings(
        cost=model_cost,
        pool_tokens=pool or tokens,
        workers=first,
        decoders=second,
        page_tokens=page,
        max_wait=max_wait,
        steal=steal,
        bandwidth=bandwidth * 1e9 / 8,
        latency=latency / 1e3,
        host_tokens=host_pool,
        tool_slots=tool_slots,
        tool_memory=None if tool_memory is None else int(tool_memory * 2**30),
        scale=_scale(scale),
    )
    scenario = load_scenario(
        workload,
        settings,
        contexts=parse_contexts(contexts),
        limit=limit,
        programs=programs,
        rate=rate,
        seed=seed,
        tool_default=int(tool_default * 2**30),
    )
    outcomes, complete = _run(scenario, policies, placements, quiet)
    told = write_outcomes(scenario, outcomes, out)
    if as_json:
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
    else:
        _show(outcomes, out)
    if not complete:
        Console(stderr=True).print("interrupted: the figures are of what had ended until then.")
        raise typer.Exit(130)


def _run(
    scenario: Scenario, policies: str, placements: str, quiet: bool
) -> tuple[list[Outcome], bool]:
    """Run every policy under every placement; False with what there is if interrupted."""
    from agentrt.bench.interrupt import Interrupt
    from agentrt.bench.policies import expand_policies
    from agentrt.cli.simulate_view import ProgressLine
    from agentrt.cluster import make_placement

    names = [name.strip() for name in placements.split(",") if name.strip()]
    for name in names:
        make_placement(name)
    outcomes: list[Outcome] = []
    wanted = [(policy, name) for policy in expand_policies(policies) for name in names]
    with _spared_collections(), Interrupt() as interrupt:
        for policy, name in wanted:
            line = ProgressLine(f"{policy} / {name}", quiet)
            outcomes.append(scenario.run(policy, name, interrupt.asked, line))
            if interrupt.asked():
                return outcomes, False
    return outcomes, True


@contextmanager
def _spared_collections() -> Iterator[None]:
    """Have the collector pass over the workload, and look at the rest a hundredth as often.

    A simulation makes few cycles and keeps many objects: looking through them was an eighth of it.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _show(outcomes: list[Outcome], out: Path | None) -> None:
    from agentrt.cli.simulate_view import figures_table

    console = Console()
    console.print(figures_table(outcomes))
    if out is not None:
        console.print(f"results: {out / 'results.json'}", highlight=False, soft_wrap=True)


def _cost(cost: str | None, gpu: str, model: str) -> tuple[CostModel, int]:
    """Return the cost model and the pool that goes with it."""
    from agentrt.bench.settings import SIMULATED_POOL
    from agentrt.simulation.cost import load_cost
    from agentrt.simulation.hardware import gpu_cost, pool_tokens

    if cost is not None:
        return load_cost(cost), SIMULATED_POOL
    return gpu_cost(gpu, model), pool_tokens(gpu, model)


def _groups(workers: int, split: str | None) -> tuple[int, int]:
    if split is None:
        return workers, 0
    first, _, second = split.partition(":")
    if not (first.isdigit() and second.isdigit() and int(first) and int(second)):
        raise ConfigError(
            f"--split {split} is not two numbers above 0.", remedy="Write it as --split 16:48."
        )
    return int(first), int(second)


def _scale(text: str | None) -> tuple[tuple[float, int], ...]:
    changes: list[tuple[float, int]] = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        at, _, change = part.partition(":")
        try:
            changes.append((float(at), int(change)))
        except ValueError as error:
            raise ConfigError(
                f"--scale {part.strip()} is not SECONDS:+N.", remedy="Write --scale 600:+4,1200:-4."
            ) from error
    return tuple(changes)
