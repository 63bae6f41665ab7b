"""``agentrt doctor``: what this machine can enforce, and how to change it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agentrt.resources.doctor import Check


def command(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for scripts.")
    ] = False,
) -> None:
    """Say what this machine can enforce, what it cannot, and the command that fixes it.

    Everything is tried for real and nothing is left behind. It works without root and then says
    what root would add.
    """
    from agentrt.resources.doctor import examine

    checks = examine()
    if json_output:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _show(checks)


def _show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "works", "gives", "found, and the remedy", pad_edge=False)
    for check in checks:
        told = f"{check.found}\n[bold]{check.remedy}[/bold]" if check.remedy else check.found
        table.add_row(check.name, "yes" if check.ok else "no", check.gives, told)
    console = Console()
    console.print(table)
    good = sum(check.ok for check in checks)
    console.print(f"{good} of {len(checks)} work.", highlight=False)
