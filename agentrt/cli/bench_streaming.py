"""`agentrt bench streaming`: what computing a tool's output while the tool runs saves."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio
import typer
from rich.console import Console

from agentrt.cli.bench_options import AsJson, Model, Pool, Quiet
from agentrt.cli.bench_run import print_json

__all__ = ["streaming"]


def streaming(
    tokens: Annotated[int, typer.Option(min=64, help="Tokens that the tool prints.")] = 4096,
    seconds: Annotated[float, typer.Option(min=0, help="How long it takes to print them.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns each way; medians are shown.")] = 3,
    model: Model = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    pool: Pool = 16_384,
    sandbox: Annotated[str, typer.Option(help="Where the tool runs.")] = "process",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the first token after a tool's output that was computed while it came, and not.

    Example: agentrt bench streaming --tokens 4096 --seconds 5
    """
    from agentrt.bench.streaming import measure_streaming
    from agentrt.runtime import RuntimeConfig

    config = RuntimeConfig(
        model=model, dtype=dtype, pool_tokens=pool, sandbox=sandbox, trusted=True
    )
    errors = Console(stderr=True, highlight=False)
    gain = anyio.run(
        partial(
            measure_streaming,
            config,
            tokens=tokens,
            seconds=seconds,
            repeats=repeats,
            tell=(lambda text: None) if quiet else errors.print,
        )
    )
    if as_json:
        print_json(gain.to_json())
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{gain.model}: first token {gain.streamed:.3f} s after a tool's {tokens:,} tokens in "
        f"{seconds:g} s, {gain.plain:.3f} s without streaming: {gain.ratio:.1f} times sooner "
        f"({gain.ahead:.0%} of the prompt was there)"
    )
