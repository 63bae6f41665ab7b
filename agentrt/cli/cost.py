"""`agentrt cost`: cost models of the simulators, measurements, and a fit to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from agentrt.cli.bench_options import AsJson

if TYPE_CHECKING:
    from agentrt.simulation.cost import CostModel

__all__ = ["app"]

app = typer.Typer(
    help="Show the simulators' cost models, and fit one to measurements.",
    no_args_is_help=True,
    add_completion=False,
)

GOOD_FIT = 0.99
"""R² below which a curve is called badly fitted (as Continuum's plug-in asks of a profile)."""


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the built-in cost models: by name, and for every GPU and model.

    Example: agentrt cost list
    """
    from agentrt.simulation.cost import COST_MODELS
    from agentrt.simulation.hardware import GPUS, MODELS, gpu_cost

    known = dict(COST_MODELS)
    known |= {f"{gpu}/{model}": gpu_cost(gpu, model) for gpu in GPUS for model in MODELS}
    if as_json:
        _print_json({name: cost.to_json() for name, cost in known.items()})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "step", "prefill 1k", "prefill 32k", "decode 64 x 8k", "reload 32k"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, cost in known.items():
        table.add_row(name, *(f"{1e3 * value:,.1f} ms" for value in _examples(cost)))
    Console().print(table)


def _examples(cost: CostModel) -> tuple[float, ...]:
    decode = cost.step_seconds + 64 * (cost.sequence_seconds + 8192 * cost.context_token_seconds)
    return (
        cost.step_seconds,
        cost.prefill_seconds(1024),
        cost.prefill_seconds(32_768),
        decode,
        cost.reload(32_768),
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A name of `agentrt cost list`, or a file.")],
) -> None:
    """Print a cost model as the JSON of a cost file.

    Example: agentrt cost show h200/qwen3-8b > mine.json
    """
    from agentrt.simulation.cost import load_cost

    _print_json(load_cost(name).to_json())


@app.command("fit")
def fit_file(
    points: Annotated[Path, typer.Argument(help="JSON of measured prefills, decodes, reloads.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The cost file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a cost model to measured curves and say how well it fits (R²).

    Example: agentrt cost fit points.json -o h100-qwen3-8b.json
    """
    from agentrt.bench.store import write_json
    from agentrt.simulation.fit import fit, read_points

    steps, reloads, rest = read_points(points)
    kept = ("source", "kv_token_bytes", "max_seqs", "token_budget", "reserve_output")
    found = fit(steps, reloads, **{name: rest[name] for name in kept if name in rest})
    if out is not None:
        write_json(out, found.cost.to_json())
    told = {"cost": found.cost.to_json(), "r2": found.r2, "points": found.points}
    if as_json:
        _print_json(told)
        return
    console = Console()
    if out is None:
        console.print_json(json.dumps(found.cost.to_json()))
    for curve, value in found.r2.items():
        poor = "" if value >= GOOD_FIT else "  (badly fitted: the model lacks a term for this)"
        console.print(
            f"{curve}: R² {value:.4f} over {found.points[curve]} points{poor}", highlight=False
        )


@app.command("measure")
def measure_model(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model directory; default: the small one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    pool: Annotated[
        int, typer.Option(min=512, metavar="TOKENS", help="KV pool to measure in.")
    ] = 8192,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The points file to write.")
    ] = None,
) -> None:
    """Measure prefill, decode and reload of a model on this machine, as points for `cost fit`.

    Example: agentrt cost measure -o points.json && agentrt cost fit points.json
    """
    from agentrt.bench.store import write_json
    from agentrt.tiering import measured_points

    points = measured_points(model, dtype, pool)
    if out is None:
        _print_json(points)
        return
    write_json(out, points)
    Console().print(f"measured points: {out}", highlight=False, soft_wrap=True)


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
