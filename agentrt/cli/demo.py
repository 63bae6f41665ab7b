"""``agentrt demo``: the main job from end to end, on the work that ships with agentrt."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from agentrt.demo.run import Demo, EventLog
    from agentrt.runtime import Runtime, RuntimeConfig

__all__ = ["command"]

INTERRUPTED = 130
REPORT, RESULTS = "report.html", "results.json"


@dataclass(frozen=True, slots=True)
class _Options:
    out: Path
    only: tuple[str, ...]
    recordings: Path | None
    policy: str
    sandbox: str
    image: str | None
    model: str | None
    seed: int
    host_kv: str | None


@dataclass(slots=True)
class _Session:
    """What is known of a run, even if it is interrupted."""

    demo: Demo | None = None
    sandbox: str = ""
    pool_tokens: int = 0
    interrupted: bool = False


def command(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where report.html and results.json go.")
    ] = Path("agentrt-demo"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Play this program only; may be repeated."),
    ] = None,
    recordings: Annotated[
        Path | None,
        typer.Option(
            "--recordings", metavar="DIR", help="Play your own recordings instead of the shipped."
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Scheduling policy, such as fcfs or continuum.")
    ] = "fixed-ttl=30",
    sandbox: Annotated[
        str, typer.Option("--sandbox", help="auto, docker, bubblewrap or process.")
    ] = "auto",
    image: Annotated[
        str | None,
        typer.Option("--image", help="Docker image of the sandboxes; it has to hold python3."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="A model directory instead of the small one."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seeds the arrivals of the programs.")] = 0,
    host_kv: Annotated[
        str | None,
        typer.Option("--host-kv", metavar="SIZE", help="Host memory for KV; default: none."),
    ] = None,
) -> None:
    """Watch coding agents fix bugs: their turns run on the engine, their commands in sandboxes.

    Each agent works on a fresh copy of a small repository with a failing test suite. Its recorded
    answers are forced through a small random model token by token; compute, KV cache, scheduling
    and commands are real, and so is the verdict: the repository's tests. Exit code 0 if all passed.

    Example: agentrt demo --only page-window --out /tmp/demo
    """
    named = tuple(only or ())
    options = _Options(out, named, recordings, policy, sandbox, image, model, seed, host_kv)
    console = Console(stderr=as_json)
    figures, code = anyio.run(_run, options, console)
    if as_json and figures is not None:
        typer.echo(json.dumps(figures))
    raise typer.Exit(code)


async def _run(options: _Options, console: Console) -> tuple[dict[str, Any] | None, int]:
    from agentrt.demo.recording import RECORDINGS, read_recordings
    from agentrt.demo.run import Demo, EventLog
    from agentrt.demo.summary import prepare_directory

    recordings = read_recordings(options.recordings or RECORDINGS, options.only)
    directory = prepare_directory(options.out, (REPORT, RESULTS))
    log = EventLog()
    demo = Demo(recordings, log, seed=options.seed)
    session = _Session()
    with anyio.CancelScope() as scope, _cancelled_by_signals(scope, session, console):
        await _play(options, demo, log, session, console)
    if session.demo is None:
        console.print("Interrupted before any program had started.")
        return None, INTERRUPTED
    figures = _finish(options, session, demo, directory, console)
    if session.interrupted:
        return figures, INTERRUPTED
    return figures, 0 if figures["resolved"] == figures["programs"] > 0 else 1


async def _play(
    options: _Options, demo: Demo, log: EventLog, session: _Session, console: Console
) -> None:
    from agentrt.demo.view import View
    from agentrt.runtime import Runtime

    console.print("Loading the engine …", style="dim")
    async with Runtime.open(_config(options), on_event=log) as runtime:
        await demo.skip_what_cannot_run(runtime)
        _introduce(options, runtime, demo, session, console)
        session.demo = demo
        with View(console, demo.rows, runtime.clock) as view:
            demo.observer = view.observe
            await demo.play(runtime)
        console.print("Closing the sandboxes and the engine …", style="dim")


def _config(options: _Options) -> RuntimeConfig:
    """Only the shipped recordings are our own work: others never fall back to plain processes."""
    from agentrt.resources.units import parse_size
    from agentrt.runtime import RuntimeConfig

    return RuntimeConfig(
        model=options.model,
        host_kv_bytes=parse_size(options.host_kv) if options.host_kv else 0,
        policy=options.policy,
        sandbox=options.sandbox,
        image=options.image,
        trusted=options.recordings is None,
    )


def _introduce(
    options: _Options, runtime: Runtime, demo: Demo, session: _Session, console: Console
) -> None:
    figures = runtime.statistics().scheduler
    session.pool_tokens = figures.pages_total * figures.page_size
    nonsense = "its weights are random and it would speak nonsense of its own, so "
    console.print(
        f"[bold]Model[/]    {runtime.model_name}: {nonsense if options.model is None else ''}"
        "the recorded answers are forced through it token by token.",
        "         Compute, KV cache, scheduling, commands and verdicts are real.",
        f"[bold]Policy[/]   {options.policy}, {session.pool_tokens:,} tokens of KV",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )
    choice = runtime.sandbox_choice
    if choice is not None:
        session.sandbox = choice.kind
        first, *rest = choice.why
        console.print("[bold]Sandbox[/] ", Text(first.removeprefix("sandbox: ")), soft_wrap=True)
        for line in rest:
            console.print(f"         {line}", markup=False, highlight=False, soft_wrap=True)
    for one in demo.skipped:
        console.print(f"[bold]Skipped[/]  {one.name}: {one.reason}", soft_wrap=True)


def _finish(
    options: _Options, session: _Session, demo: Demo, directory: Path, console: Console
) -> dict[str, Any]:
    """Write the files, show how it went, and return the figures."""
    from agentrt.bench.report import write_run_report
    from agentrt.demo.summary import headline, summarise, write_json
    from agentrt.demo.view import closing_table

    record = demo.record(options.policy, session.pool_tokens)
    record.settings = {
        "sandbox": session.sandbox,
        "model": options.model or "seeded default",
        "command": shlex.join(["agentrt", *sys.argv[1:]]),
    }
    report = directory / REPORT
    figures = summarise(demo, record, sandbox=session.sandbox, report=report)
    write_json(directory / RESULTS, figures, demo, record)
    write_run_report(record, report, title="agentrt demo", headline=headline(figures))
    console.print(closing_table(demo.rows.values()))
    for one in demo.skipped:
        console.print(f"skipped {one.name}: {one.reason}", highlight=False, soft_wrap=True)
    console.print(headline(figures), highlight=False, soft_wrap=True)
    console.print(f"resolved {figures['resolved']}/{figures['programs']}", style="bold")
    console.print(f"report   {report}", markup=False, highlight=False, soft_wrap=True)
    return figures


@contextmanager
def _cancelled_by_signals(
    scope: anyio.CancelScope, session: _Session, console: Console
) -> Iterator[None]:
    """Cancel ``scope`` on the first SIGINT or SIGTERM; a second SIGINT ends at once."""
    import asyncio

    loop = asyncio.get_running_loop()

    def first(number: int, frame: object) -> None:
        session.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(scope.cancel)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if session.interrupted:
            console.print("Interrupted: what was done so far is kept.", style="yellow")
