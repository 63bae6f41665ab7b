"""The commands of ``agentrt guide`` that run guides: run, resume, replay, fork, runs, answer."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.workflows.plan import Plan

__all__ = ["propose", "register"]

Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where log, data and reports are kept.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout; progress goes to stderr.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `runs` lists it.")]
OUT = Path("agentrt-guides")


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``agentrt guide``."""
    examples: dict[Callable[..., None], str] = {
        run: "Example: agentrt guide run queue_backlog --incident stopped_consumers",
        resume: "Example: agentrt guide resume run-0123456789ab",
        replay: "Example: agentrt guide replay run-0123456789ab",
        fork: "Example: agentrt guide fork run-0123456789ab --from Step2 --take Step3",
        runs: "Example: agentrt guide runs --json",
        answer: "Example: agentrt guide answer run-0123456789ab Step4/approve approve",
    }
    for function, epilog in examples.items():
        app.command(epilog=epilog)(function)


def run(
    guide: Annotated[
        str, typer.Argument(metavar="GUIDE", help="A guide's file or folder, or a shipped one's.")
    ],
    incident: Annotated[
        str | None,
        typer.Option(
            "--incident", metavar="FILE", help="An incident's file, or the name of one beside it."
        ),
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="K=V", help="A parameter; may repeat.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Steps under way at once.")] = 5,
    compat: Annotated[bool, typer.Option("--compat", help="Fire steps as StepFly does.")] = False,
    model: Annotated[
        str, typer.Option(help="none, scripted (by the incident), embedded, or a URL with /v1.")
    ] = "none",
    model_name: Annotated[
        str | None, typer.Option(help="The model's name at the URL.  [default: the first it lists]")
    ] = None,
    sandbox: Annotated[
        str, typer.Option(help="For commands: auto, docker, bubblewrap, process or none.")
    ] = "auto",
    recorded: Annotated[
        bool | None,
        typer.Option(
            "--recorded/--live",
            help="Answer queries from recorded telemetry. Default: for guides that ship.",
        ),
    ] = None,
    database: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="SQLite file for the plugins of a StepFly guide."),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that a condition in prose waits for a person's answer when no model "
            "decides it; then it does not hold. Default: 600 at a terminal, else 0.",
        ),
    ] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Run a guide on an incident and write a report.

    Exit code: 0 succeeded, 1 failed, 3 inconclusive, 130 interrupted (it can be resumed), 2 wrong
    input. Conditions in backticks are decided by code. Those in prose are decided by the model if
    there is one, else by you at the terminal, else by their default: they do not hold.
    """
    from agentrt.cli.guide_session import begin, is_interactive
    from agentrt.workflows.guides import find_guide
    from agentrt.workflows.session_parts import SessionSettings, find_case, is_shipped

    path = find_guide(guide)
    settings = SessionSettings(
        guide=str(path.absolute()),
        incident=str(find_case(path, incident).absolute()) if incident else None,
        parameters=_parameters(param or []),
        model=model,
        model_name=model_name,
        sandbox=sandbox,
        workers=workers,
        compat=compat,
        patience=patience if patience is not None else 600.0 if is_interactive() else 0.0,
        recorded=is_shipped(path) if recorded is None else recorded,
        database=str(database.absolute()) if database else None,
    )
    raise typer.Exit(begin(settings, out, as_json))


def _parameters(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ConfigError(f"--param {name!r} has no value.", remedy="Write --param name=value.")
    return {name.strip(): value for name, _, value in pairs}


def resume(name: RunName, out: Out = OUT, as_json: Json = False) -> None:
    """Go on with a run that was interrupted; steps that have finished are not run again."""
    from agentrt.cli.guide_session import go_on

    raise typer.Exit(go_on(name, out, as_json))


def replay(name: RunName, out: Out = OUT, as_json: Json = False) -> None:
    """Go through a recorded run again without a single live call, and compare.

    Exit code 1 if guide or code come to something else than was recorded.
    """
    import anyio

    from agentrt.cli.guide_session import replay_run
    from agentrt.workflows.run_replay import ReplayDivergence

    try:
        found = anyio.run(replay_run, name, out)
    except ReplayDivergence as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        print_json({"run": name, "same": True, **dataclasses.asdict(found)})
        return
    typer.echo(
        f"{name}: the same again: {found.events} events, {found.attempts} attempts of steps, "
        f"{found.calls} calls answered from the log, none live"
    )


def fork(
    name: RunName,
    step: Annotated[str, typer.Option("--from", metavar="STEP", help="The step to change.")],
    result: Annotated[
        str,
        typer.Option(
            metavar="FILE|JSON", help="What to change in its result: an object, or a file with one."
        ),
    ] = "{}",
    take: Annotated[
        list[str] | None,
        typer.Option(
            help="Take only the edges to these steps. Default: as it decided; may repeat."
        ),
    ] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Make another run that is the same up to a step, change the step's result, and go on."""
    from agentrt.cli.guide_session import fork_run

    raise typer.Exit(fork_run(name, step, _result(result), take or [], out, as_json))


def _result(text: str) -> dict[str, Any]:
    try:
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--result cannot be read: {error}.", remedy="Give a JSON object, or a file with one."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError("--result is not a JSON object.", remedy='Write {"findings": "…"}.')
    return value


def runs(
    out: Out = OUT,
    every: Annotated[bool, typer.Option("--all", help="Also runs of nested guides.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs in a directory, oldest first, and the questions that are open."""
    from agentrt.workflows.gates import list_runs

    found = [row.to_json() for row in list_runs(out, nested=every)]
    if as_json:
        print_json({"runs": found})
        return
    for each in found:
        line = f"{each['run']}  {each['guide']:<18} {each['status']:<12} {each['begun']}"
        line += f"  fork of {each['parent']}" if each["parent"] else ""
        line += f"  asks {', '.join(each['asks'])}" if each["asks"] else ""
        typer.echo(line)
    if not found:
        typer.echo(f"no runs in {out}")


def answer(
    name: RunName,
    gate: Annotated[str, typer.Argument(metavar="GATE", help="The question's id.")],
    text: Annotated[str, typer.Argument(metavar="ANSWER", help="One of its options.")],
    out: Out = OUT,
) -> None:
    """Answer a gate or a question of a run; the run may be under way in another process."""
    from agentrt.cli.guide_session import give_answer

    typer.echo(give_answer(name, gate, text, out))


def propose(path: Path, model: str) -> Plan:
    """Let a model propose the connections of a guide that is prose, show them, return the plan.

    Raises:
        ConfigError: there is no such model, or what it proposes is not a sound plan.
    """
    import anyio

    from agentrt.cli.guide_session import propose_plan

    found = anyio.run(propose_plan, path, model)
    typer.echo(found.diff, err=True)
    for each in found.answers:
        typer.echo(f"{each.context}: {each.answer} ({each.evidence})", err=True)
    if found.guide is None or not found.sound:
        raise ConfigError(
            f"The proposal is not a sound plan: {'; '.join(found.problems)}.",
            remedy="Write the connections of the steps it names yourself.",
        )
    typer.echo("Review this before you put it into the guide.", err=True)
    from agentrt.workflows.plan import make_plan

    return make_plan(found.guide)


def print_json(data: Any) -> None:
    """Print one JSON object to stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
