"""Options that the commands of `agentrt bench` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentrt.errors import ConfigError

__all__ = [
    "Arrivals",
    "AsJson",
    "ContextsOption",
    "Cost",
    "Deadline",
    "Engine",
    "Fresh",
    "GapCv",
    "GapScale",
    "HostKV",
    "HostPool",
    "Jobs",
    "Limit",
    "MaxWait",
    "Model",
    "Out",
    "Pool",
    "Pools",
    "Quiet",
    "Rate",
    "SandboxOption",
    "Seed",
    "TellTurns",
    "TimeScale",
    "TokenScale",
    "TurnFactor",
    "Weights",
    "WorkloadPath",
    "parse_pools",
    "parse_weights",
]

WorkloadPath = Annotated[
    Path,
    typer.Argument(
        help="Workload file, a file or directory of a known trace format, or synthetic:NAME."
    ),
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
Pools = Annotated[str | None, typer.Option(help="Several KV pools in tokens, separated by commas.")]
Jobs = Annotated[int, typer.Option(help="Runs side by side, each on a process of its own.")]
HostPool = Annotated[
    int, typer.Option(help="A host tier of so many tokens of KV (simulated); 0: none.")
]
HostKV = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Host memory for KV, such as 2g (live). Default: none."),
]
Weights = Annotated[
    str | None, typer.Option(help="Tenants' shares, such as a=3,b=1 (simulated). Default: equal.")
]
Arrivals = Annotated[
    str | None,
    typer.Option(
        help="poisson, recorded, or mooncake:FILE: that trace's bursts stretched to --rate."
    ),
]
GapScale = Annotated[float, typer.Option(help="Multiply the gaps between turns.")]
GapCv = Annotated[
    float | None,
    typer.Option(help="Redraw the gaps log-normally, same mean, this coefficient of variation."),
]
TurnFactor = Annotated[int, typer.Option(help="Split every turn into so many.")]

Deadline = Annotated[
    float | None,
    typer.Option(help="Give every program so many times its seconds alone (simulated)."),
]

TellTurns = Annotated[
    bool,
    typer.Option("--tell-turns", help="Programs say how many turns they have left (simulated)."),
]


def parse_weights(text: str | None) -> dict[str, float]:
    """Return the weights of ``NAME=NUMBER,NAME=NUMBER``.

    Raises:
        ConfigError: an entry is not of that form.
    """
    weights: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError as error:
            raise ConfigError(
                f"--weights has the entry {part!r}.", remedy="Write NAME=NUMBER, such as a=3,b=1."
            ) from error
    return weights


def parse_pools(pool: int | None, pools: str | None) -> list[int | None]:
    """Return the pools of ``--pool`` or ``--pools``; one that is None where neither is given.

    Raises:
        ConfigError: both are given, or a size is not a whole number.
    """
    if pools is None:
        return [pool]
    if pool is not None:
        raise ConfigError("Both --pool and --pools are given.", remedy="Give one of them.")
    try:
        return list(dict.fromkeys(int(size) for size in pools.split(",")))
    except ValueError as error:
        raise ConfigError(
            f"--pools is {pools!r}.", remedy="Give tokens, such as 250000,490000."
        ) from error
