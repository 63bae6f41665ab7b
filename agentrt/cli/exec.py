"""``agentrt exec``: run a command here, under limits of its own, and be told what it used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentrt.errors import ConfigError
from agentrt.resources.units import parse_seconds

if TYPE_CHECKING:
    from agentrt.resources.intent import Intent
    from agentrt.sandbox import ExecResult

__all__ = ["command", "intent_of"]

TIMEOUT_CODE = 124
CONTEXT = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""What follows the command's name is the command's own."""


def intent_of(**given: str | None) -> Intent:
    """The intent that the flags declare, before the environment's hint.

    Raises:
        ConfigError: a flag's value is out of its range.
    """
    from agentrt.resources.hints import HINT_VARIABLE, parse_hint
    from agentrt.resources.intent import intent, merged

    stated: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    hinted, _ = parse_hint(os.environ.get(HINT_VARIABLE, ""))
    return merged(intent(**stated), hinted)


def command(
    argv: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    memory: Annotated[
        str | None, typer.Option(help="Memory it needs, as 512m, 2g, low, medium, high.")
    ] = None,
    cpu: Annotated[str | None, typer.Option(help="Cores it needs, as 2 or 0.5.")] = None,
    pids: Annotated[str | None, typer.Option(help="Processes and threads.")] = None,
    io: Annotated[str | None, typer.Option(help="Bytes a second, as 50m.")] = None,
    expect: Annotated[str | None, typer.Option(help="How long it takes, as 30s.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high.")] = None,
    on_limit: Annotated[
        str | None, typer.Option(help="At its memory limit: kill, freeze or throttle.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="Killed after this, as 10m.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Time limit of the run, as 5m.")] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a JSON line about the call.")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Pass our standard input on.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, the output inside.")
    ] = False,
) -> None:
    """Run a command in this directory, in a cgroup of its own, and exit with its code.

    It is not confined: see agentrt sandbox exec for that. What it used and what stopped it is said
    on stderr. AGENT_RESOURCE_HINT declares what no flag does. Exit code 124: past its time limit.

    Example: agentrt exec --memory 2g --cpu 2 -- pytest -q
    """
    import anyio

    declared = intent_of(
        memory=memory,
        cpu=cpu,
        pids=pids,
        io=io,
        expect=expect,
        priority=priority,
        on_limit=on_limit,
        deadline=deadline,
    )
    data = sys.stdin.buffer.read() if stdin else None
    seconds = parse_seconds(timeout) if timeout else None
    try:
        result = anyio.run(_run, argv, declared, seconds, data, log, json_output)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _report(result, json_output)
    raise typer.Exit(TIMEOUT_CODE if result.exit_code is None else result.exit_code)


async def _run(
    argv: list[str],
    declared: Intent,
    timeout: float | None,
    stdin: bytes | None,
    log: Path | None,
    quiet: bool,
) -> ExecResult:
    from agentrt.cli.sandbox import passer
    from agentrt.resources.governor import Governor, GovernorConfig
    from agentrt.sandbox import SandboxSpec, make_provider, reap, reap_containers

    await reap(containers=reap_containers)
    here = Path.cwd()
    spec = SandboxSpec(network="host", labels={"repository": str(here)})
    async with make_provider("process") as provider:
        governor = Governor(GovernorConfig(log=log))
        await provider.govern(governor)
        try:
            async with await provider.create(spec) as sandbox:
                return await sandbox.exec(
                    argv,
                    cwd=str(here),
                    env=_environment(),
                    stdin=stdin,
                    timeout=timeout,
                    intent=declared,
                    on_stdout=None if quiet else passer(sys.stdout.buffer),
                    on_stderr=None if quiet else passer(sys.stderr.buffer),
                )
        finally:
            governor.close()


def _environment() -> dict[str, str]:
    """Ours, but for names that no program could be given."""
    for name in os.environ:
        if not name:
            raise ConfigError("A variable without a name is set.", remedy="Unset it.")
    return dict(os.environ)


def _report(result: ExecResult, json_output: bool) -> None:
    from agentrt.cli.sandbox import result_json, write_json

    if json_output:
        write_json(result_json(result))
        return
    for line in result.unenforced:
        typer.echo(f"agentrt: not enforced: {line}", err=True)
    if result.feedback is not None and result.feedback.text:
        typer.echo(result.feedback.text, err=True)
