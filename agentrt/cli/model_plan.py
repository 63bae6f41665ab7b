"""``agentrt model plan``: what models would take of a device, without reading a weight."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["command"]


def command(
    models: Annotated[
        list[str], typer.Argument(metavar="DIR…", help="Model directories, in order.")
    ],
    device_bytes: Annotated[
        str | None,
        typer.Option("--device-bytes", metavar="SIZE", help="Free memory; default: of this device"),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu/--cpu", help="Which kind of device --device-bytes is.")
    ] = True,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float32.")] = "bfloat16",
    quant: Annotated[str | None, typer.Option("--quant", help="int8 or fp8 weights.")] = None,
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="auto, int8 or fp8.")] = "auto",
    pool: Annotated[
        int | None, typer.Option("--pool", min=1, metavar="TOKENS", help="KV of each model.")
    ] = None,
    max_seqs: Annotated[
        int, typer.Option("--max-seqs", min=1, help="Turns at the same time.")
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what weights, graphs, KV and the rest take; refuse what cannot fit, with a remedy.

    Example: agentrt model plan my-model --device-bytes 80g --quant fp8
    """
    from agentrt.assembly import find_models, plan_pools
    from agentrt.engine.memory import DeviceBytes
    from agentrt.resources.units import parse_size
    from agentrt.runtime import RuntimeConfig

    device = None
    if device_bytes is not None:
        device = DeviceBytes(parse_size(device_bytes), "named by --device-bytes", gpu)
    config = RuntimeConfig(
        model=models[0],
        more_models=tuple(models[1:]),
        dtype=dtype,
        quant=quant,
        kv_dtype=kv_dtype,
        pool_tokens=pool,
        max_seqs=max_seqs,
    )
    plan = plan_pools(config, find_models(config), device)
    if as_json:
        rows = [asdict(model) | {"tokens": model.tokens} for model in plan.models]
        told = {"device": asdict(plan.device), "reserve": plan.device.reserve, "models": rows}
        typer.echo(json.dumps(told))
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in plan.lines():
        console.print(line)
