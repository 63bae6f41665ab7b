"""The command line's root: names every command, imports each only when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from agentrt.errors import AgentRTError
from agentrt.waiting import wait_passively

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "demo": "Watch coding agents fix small repositories: the whole runtime at work.",
    "serve": "Serve an OpenAI-compatible API that schedules programs, not requests.",
    "bench": "Replay workloads under one policy or several, live or simulated.",
    "simulate": "Replay a workload on a cluster of many workers, in virtual time.",
    "cost": "Cost models of the simulators: show them, fit one to measurements.",
    "model": "Make a seeded model of a real architecture, or describe one.",
    "guide": "Check, plan, run and test troubleshooting guides.",
    "exec": "Run a command under limits of its own and be told what it used.",
    "mcp": "Serve an exec tool that takes an intent, over MCP on stdin and stdout.",
    "sandbox": "Run a command in a sandbox, check what works here, clean up.",
    "doctor": "What this machine can enforce, what it cannot, and the command that fixes it.",
    "trace": "Stacks, block I/O and files of one running tool call (needs bcc).",
}

USER_ERROR = 2
INTERRUPTED = 130


class LazyGroup(TyperGroup):
    """Loads ``agentrt.cli.NAME`` when NAME is called; a listing of all needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that has the command's name and help: enough for a listing."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is to run, imported now."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name is not None and stand_in is not None else None, rest


def _load(name: str) -> Any:
    module = importlib.import_module(f"agentrt.cli.{name}")
    if hasattr(module, "app"):
        command = get_command(module.app)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(name, context_settings=getattr(module, "CONTEXT", None))(module.command)
        command = get_command(single)
    command.name = name
    command.help = command.help or COMMANDS[name]
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve AI agents as whole programs on one machine.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Serve AI agents as whole programs on one machine.

    Example: agentrt demo
    """
    if version:
        from agentrt import __version__

        typer.echo(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors end in one line with the remedy and exit code 2."""
    wait_passively(os.environ)
    try:
        app(list(arguments) if arguments is not None else None)
    except AgentRTError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
