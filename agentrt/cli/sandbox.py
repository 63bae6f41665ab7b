"""``agentrt sandbox``: check what works here, run one command in a sandbox, clean up."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentrt.errors import ConfigError
from agentrt.resources.units import parse_cpu, parse_pids, parse_seconds, parse_size

if TYPE_CHECKING:
    from agentrt.resources.intent import Intent
    from agentrt.sandbox import Choice, ExecResult, Limits, Probe, SandboxSpec

__all__ = ["app", "make_spec", "passer", "result_json", "write_json"]

TIMEOUT_CODE = 124
"""Exit code for a command that we killed at its time limit, as timeout(1) has it."""

app = typer.Typer(
    help="Run commands in sandboxes, check what works on this machine, clean up after crashes.",
    no_args_is_help=True,
)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
Image = Annotated[str | None, typer.Option(help="Docker image; without one docker is passed over.")]


@app.command(epilog="Example: agentrt sandbox check --image debian:12")
def check(image: Image = None, json_output: Json = False) -> None:
    """Try each kind for real: whether it works, why not, the remedy, what it enforces."""
    import anyio

    probes = anyio.run(_probe_all, image)
    if json_output:
        write_json({probe.kind: asdict(probe) for probe in probes})
    else:
        _show_probes(probes)


async def _probe_all(image: str | None) -> list[Probe]:
    from agentrt.sandbox import KINDS, make_provider

    out: list[Probe] = []
    for kind in KINDS:
        async with make_provider(kind, image=image) as provider:
            out.append(await provider.probe())
    return out


def _show_probes(probes: list[Probe]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "works", "why", "enforces", "not enforced, and the remedy")
    for probe in probes:
        missing = "\n".join(f"{name}: {remedy}" for name, remedy in probe.missing.items())
        table.add_row(
            probe.kind,
            "yes" if probe.ok else "no",
            f"{probe.reason}. {probe.remedy}".strip(),
            ", ".join(probe.enforces) or "-",
            missing or "-",
        )
    Console().print(table)


@app.command(epilog="Example: agentrt sandbox gc --json")
def gc(json_output: Json = False) -> None:
    """Remove what crashed runs left: processes, containers, cgroups, directories, records."""
    import anyio

    from agentrt.sandbox import reap, reap_containers

    async def run() -> Any:
        return await reap(containers=reap_containers, sweep=True)

    report = anyio.run(run)
    if json_output:
        write_json(asdict(report))
    else:
        typer.echo(
            f"removed {len(report.runs)} dead runs, {report.processes} processes, "
            f"{report.containers} containers; {len(report.live)} runs are alive"
        )
        for line in report.failed:
            typer.echo(f"still there: {line}", err=True)
    if report.failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Request:
    """What ``exec`` was asked for, checked."""

    kind: str
    spec: SandboxSpec
    timeout: float | None
    command: list[str]
    stdin: bytes | None
    quiet: bool
    intent: Intent


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: agentrt sandbox exec --memory 512m --timeout 30 -- python3 -c 'print(1)'",
)
def exec_command(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    kind: Annotated[str, typer.Option(help="auto, docker, bubblewrap or process.")] = "auto",
    source: Annotated[
        Path | None, typer.Option(help="Directory whose copy is the work directory.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory limit, as 512m or 2g.")] = None,
    cpu: Annotated[str | None, typer.Option(help="CPU limit in cores, as 0.5.")] = None,
    pids: Annotated[str | None, typer.Option(help="Limit of processes and threads.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Time limit, as 30, 5m.")] = None,
    intent: Annotated[
        str | None, typer.Option(help="What it needs, as memory:1g,cpu:2,expect:30s.")
    ] = None,
    network: Annotated[str, typer.Option(help="none or host.")] = "none",
    image: Image = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Pass our standard input on.")] = False,
    json_output: Json = False,
) -> None:
    """Run one command in a fresh sandbox and exit with its code (124 past the time limit)."""
    import anyio

    spec = make_spec(source, network, image, _limits(memory, cpu, pids))
    request = _Request(
        kind,
        spec,
        parse_seconds(timeout) if timeout else None,
        command,
        sys.stdin.buffer.read() if stdin else None,
        json_output,
        _intent(intent),
    )
    try:
        choice, result = anyio.run(_execute, request)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _report(choice, result, json_output)
    raise typer.Exit(_exit_code(result))


def _intent(text: str | None) -> Intent:
    """The declared intent.

    Raises:
        ConfigError: a part of it is not understood; in the environment that would be passed over.
    """
    from agentrt.resources.hints import parse_hint

    found, problems = parse_hint(text or "")
    if problems:
        raise ConfigError(
            f"{problems[0]!r} is no part of an intent.", remedy="Write it as memory:1g,cpu:2."
        )
    return found


def _limits(memory: str | None, cpu: str | None, pids: str | None) -> Limits:
    from agentrt.sandbox import Limits

    return Limits(
        memory=parse_size(memory) if memory else None,
        cpu=parse_cpu(cpu) if cpu else None,
        pids=parse_pids(pids) if pids else None,
    )


def make_spec(source: Path | None, network: str, image: str | None, limits: Limits) -> SandboxSpec:
    from agentrt.sandbox import SandboxSpec

    if network == "none":
        return SandboxSpec(image=image, source=source, limits=limits)
    if network == "host":
        return SandboxSpec(image=image, source=source, limits=limits, network="host")
    raise ConfigError(f"There is no network mode {network!r}.", remedy="Use none or host.")


async def _execute(request: _Request) -> tuple[Choice, ExecResult]:
    from agentrt.sandbox import choose

    choice = await choose(request.kind, image=request.spec.image)
    async with choice.provider as provider, await provider.create(request.spec) as sandbox:
        result = await sandbox.exec(
            request.command,
            timeout=request.timeout,
            stdin=request.stdin,
            intent=request.intent,
            on_stdout=None if request.quiet else passer(sys.stdout.buffer),
            on_stderr=None if request.quiet else passer(sys.stderr.buffer),
        )
    return choice, result


def passer(stream: Any) -> Any:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def _report(choice: Choice, result: ExecResult, json_output: bool) -> None:
    if json_output:
        write_json({"sandbox": choice.kind, "why": list(choice.why), **result_json(result)})
        return
    for line in result.unenforced:
        typer.echo(f"agentrt: not enforced: {line}", err=True)
    if result.feedback is not None and result.feedback.text:
        typer.echo(result.feedback.text, err=True)
    elif result.status != "exited":
        typer.echo(f"agentrt: {result.status.replace('_', ' ')}", err=True)
    for name in ("stdout", "stderr"):
        if getattr(result, f"{name}_truncated"):
            typer.echo(f"agentrt: {name} was cut at its cap", err=True)


def result_json(result: ExecResult) -> dict[str, Any]:
    """A result as JSON; what is no text in the output is replaced."""
    fields = asdict(result)
    for name in ("stdout", "stderr"):
        fields[name] = fields[name].decode(errors="replace")
    return fields


def _exit_code(result: ExecResult) -> int:
    return TIMEOUT_CODE if result.exit_code is None else result.exit_code


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))
