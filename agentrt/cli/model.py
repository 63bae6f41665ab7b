"""``agentrt model``: make a seeded model of a real architecture, or describe one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agentrt.cli import model_plan

if TYPE_CHECKING:
    from agentrt.engine.model.load import ModelSource

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make a seeded model of a real architecture, or describe one.\n\n"
    "Example: agentrt model make --arch qwen3 --size 15m my-model",
)
app.command("plan")(model_plan.command)


@app.command()
def make(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model goes.")],
    arch: Annotated[str, typer.Option(help="llama, mistral, qwen2 or qwen3.")] = "qwen3",
    size: Annotated[str, typer.Option(help="15m, 135m or 600m parameters.")] = "15m",
    seed: Annotated[int, typer.Option(help="Other seeds give other weights.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the files: bfloat16 or float32.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a seeded checkpoint with a tokenizer, for tests and demonstrations.

    It has the architecture, shapes and cost of a real model, and random weights: it speaks
    nonsense. The same arguments give the same bytes.

    Example: agentrt model make --arch qwen3 --size 135m --seed 0 my-model
    """
    from agentrt.engine.model.make import NONSENSE, make_model

    with _progress(f"Making {arch}-{size}") as on_progress:
        made = make_model(directory, arch, size, seed, dtype=dtype, progress=on_progress)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "directory": str(made.directory),
                    "arch": made.arch,
                    "size": made.size,
                    "seed": made.seed,
                    "dtype": made.dtype,
                    "parameters": made.parameters,
                    "reused": made.reused,
                }
            )
        )
        return
    what = "was there already, unchanged" if made.reused else "is ready"
    console = Console()
    console.print(Text(f"{made.directory} {what}: {made.parameters:,} parameters. {NONSENSE}"))


@app.command()
def info(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a model directory, after checking that it can be loaded; reads no weights.

    Example: agentrt model info my-model --json
    """
    from agentrt.engine.model.load import open_source

    facts = _facts(open_source(directory))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(shown))
    Console().print(table)


def _facts(source: ModelSource) -> dict[str, Any]:
    from agentrt.engine.model.config import ModelConfig

    config = source.shape
    native = isinstance(config, ModelConfig)
    own = {"hidden_size": config.hidden_size} if isinstance(config, ModelConfig) else {}
    return {
        "arch": config.arch,
        "parameters": source.parameters,
        "dtype": config.dtype,
        "vocab_size": config.vocab_size,
        "layers": config.num_layers,
        **own,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_positions": config.max_positions,
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "kv_bytes_per_token_float32": config.kv_bytes_per_token("float32"),
        "computed_by": "agentrt" if native else "transformers",
    }


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, where it does not mix with what a script reads."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield on_progress
