"""``agentrt trace``: stacks, block I/O and files of one running tool call, by bcc."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def command(
    tool_call: Annotated[
        str, typer.Argument(help="tool-3, SANDBOX/tool-3, or its cgroup directory.")
    ],
    seconds: Annotated[float, typer.Option(min=0.1, max=600.0, help="How long to watch.")] = 5.0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for scripts.")
    ] = False,
) -> None:
    """Watch a running tool call: what it computes, reads and writes.

    Needs root, and python3-bpfcc and kernel headers from the distribution.
    """
    from agentrt.resources.trace import find_tool_call, trace

    seen = trace(find_tool_call(tool_call), seconds)
    if json_output:
        typer.echo(json.dumps(asdict(seen), indent=2))
        return
    typer.echo(f"{seen.cgroup}, {seconds:g} s")
    for title, counts in (
        ("block I/O, bytes", seen.block_bytes),
        ("files opened", seen.files),
        ("stacks, samples", seen.stacks),
    ):
        typer.echo(f"\n{title}:")
        ordered = sorted(counts.items(), key=lambda item: -item[1])[:20]
        for name, count in ordered:
            typer.echo(f"{count:>12}  {name}")
        if not ordered:
            typer.echo("           -")
