"""What the run commands of ``agentrt guide`` do: drive a session, show it, write its report."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from rich.console import Console
from rich.text import Text

from agentrt.cli.guide_view import RunView, style_of
from agentrt.errors import ConfigError
from agentrt.workflows.guides import open_guide
from agentrt.workflows.log import RunLog
from agentrt.workflows.models import ScriptedModel
from agentrt.workflows.person import Person, Question
from agentrt.workflows.run import RunOutcome, check_parameters, new_id
from agentrt.workflows.session import Session, open_log, open_session
from agentrt.workflows.session_parts import (
    SessionSettings,
    open_model,
    read_case,
    read_settings,
    save_settings,
)
from agentrt.workflows.testing_model import CasePerson

if TYPE_CHECKING:
    from agentrt.workflows.extract import Proposal
    from agentrt.workflows.lint import Finding
    from agentrt.workflows.run_replay import Replayed

__all__ = [
    "begin",
    "fork_run",
    "give_answer",
    "go_on",
    "is_interactive",
    "propose_plan",
    "remarks_of_model",
    "replay_run",
]

EXIT_CODES = {"succeeded": 0, "inconclusive": 3, "running": 130}
"""By how a run ended; anything else is 1."""
MOST_TRIES = 3

Work = Callable[[Session], Awaitable[RunOutcome]]


def is_interactive() -> bool:
    """Whether a person can be asked at this terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def begin(settings: SessionSettings, out: Path, as_json: bool) -> int:
    """Begin a run and return the exit code."""
    name = new_id()

    async def work(session: Session) -> RunOutcome:
        check_parameters(session.plan, session.parameters)
        save_settings(settings, out / name)
        return await session.runner.run(session.parameters, run_id=name)

    return _drive(name, settings, out, as_json, work)


def go_on(name: str, out: Path, as_json: bool) -> int:
    """Resume a run and return the exit code."""
    settings = read_settings(out / name)
    return _drive(name, settings, out, as_json, lambda session: session.runner.resume(name))


def fork_run(
    name: str, step: str, change: dict[str, Any], take: list[str], out: Path, as_json: bool
) -> int:
    """Fork a run with a changed result of one step; return the exit code.

    ``take`` are the targets of the step's edges that are taken; empty leaves its decisions.
    """
    settings = read_settings(out / name)
    new = new_id()

    async def work(session: Session) -> RunOutcome:
        if step not in session.plan.steps:
            known = ", ".join(session.plan.steps)
            raise ConfigError(f"There is no step {step!r}.", remedy=f"Steps are: {known}.")
        edges = _edges(session, step, take) if take else None
        before = session.runner.outcome(name).results.get(step) or {}
        save_settings(settings, out / new)
        return await session.runner.fork(
            name, step, {**before, **change}, edges=edges, new_run_id=new
        )

    return _drive(new, settings, out, as_json, work)


def _edges(session: Session, step: str, take: list[str]) -> dict[str, str]:
    edges = session.plan.outgoing(step)
    unknown = sorted(set(take) - {edge.target for edge in edges})
    if unknown:
        known = ", ".join(edge.target for edge in edges)
        raise ConfigError(f"{step} has no edge to {unknown[0]}.", remedy=f"It leads to: {known}.")
    return {edge.name: "enabled" if edge.target in take else "disabled" for edge in edges}


def _drive(name: str, settings: SessionSettings, out: Path, as_json: bool, work: Work) -> int:
    """Do the work in a session, showing what happens; return the exit code."""
    console = Console(stderr=as_json)
    titles = {step.id: step.title for step in open_guide(Path(settings.guide)).steps}
    view = RunView(console, titles)
    with view:
        outcome = anyio.run(_work, settings, out, view, work, name)
    if outcome is None:
        _say_how_to_resume(name, out, console)
        return EXIT_CODES["running"]
    _finish(outcome, out, console, as_json)
    if outcome.status == "running":
        _say_how_to_resume(outcome.run_id, out, console)
    return EXIT_CODES.get(outcome.status, 1)


async def _work(
    settings: SessionSettings, out: Path, view: RunView, work: Work, name: str
) -> RunOutcome | None:
    """Return the outcome, or None when a signal stopped the run before its end."""
    outcome: RunOutcome | None = None
    with anyio.CancelScope() as scope, _cancelled_by_signals(scope):
        async with open_session(
            settings, out, person=_person(settings, view), on_event=view.show
        ) as session:
            if settings.model == "none" and not is_interactive():
                wait = f" unless answered within {settings.patience:g} s"
                view.note(
                    "no model and no terminal: a condition in prose does not hold"
                    + (wait if settings.patience else "")
                )
            view.note(f"run {name} of {session.plan.guide.name}, {settings.workers} workers")
            outcome = await work(session)
            _write_reports(session, outcome, out)
    return outcome


def _person(settings: SessionSettings, view: RunView) -> Person | None:
    if settings.model == "scripted" and settings.incident:
        return CasePerson(read_case(Path(settings.incident)))
    return _TerminalPerson(view) if is_interactive() else None


class _TerminalPerson:
    """Asks at the terminal, one question at a time, in a thread that an exit does not wait for."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._one = anyio.Lock()

    async def ask(self, question: Question) -> str | None:
        """Return an answer among the options, or None after a few that are not."""
        async with self._one:
            for _ in range(MOST_TRIES):
                answer = await self._once(question)
                if answer in question.options:
                    return answer
        return None

    async def _once(self, question: Question) -> str:
        loop, done, said = asyncio.get_running_loop(), anyio.Event(), [""]

        def ask() -> None:
            said[0] = self._view.ask(question)
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=ask, daemon=True, name="agentrt-ask").start()
        await done.wait()
        return said[0]


def _write_reports(session: Session, outcome: RunOutcome, out: Path) -> None:
    from agentrt.workflows.report import report_run, write_report

    directory = out / outcome.run_id
    directory.mkdir(parents=True, exist_ok=True)
    report = report_run(session.log, outcome.run_id, session.plan, data=session.store)
    for suffix in ("md", "html"):
        write_report(report, directory / f"report.{suffix}")


def _finish(outcome: RunOutcome, out: Path, console: Console, as_json: bool) -> None:
    report = out / outcome.run_id / "report.html"
    if as_json:
        from agentrt.cli.guide_run import print_json

        print_json(
            {
                "run": outcome.run_id,
                "status": outcome.status,
                "reason": outcome.reason,
                "conclusion": outcome.conclusion,
                "path": list(outcome.path),
                "steps": dict(outcome.steps),
                "waiting": list(outcome.waiting),
                "tokens": outcome.tokens,
                "cached_tokens": outcome.cached_tokens,
                "report": str(report),
            }
        )
        return
    said = outcome.conclusion or outcome.reason
    headline = Text(f"{outcome.status}: {said}", style=f"bold {style_of(outcome.status)}".strip())
    console.print(headline, soft_wrap=True)
    console.print(f"path     {' '.join(outcome.path)}", highlight=False, soft_wrap=True)
    console.print(f"report   {report}", highlight=False, markup=False, soft_wrap=True)


def _say_how_to_resume(name: str, out: Path, console: Console) -> None:
    command = shlex.join(["agentrt", "guide", "resume", name, "--out", str(out)])
    console.print(f"not at its end; go on with: {command}", highlight=False, soft_wrap=True)


@contextmanager
def _cancelled_by_signals(scope: anyio.CancelScope) -> Iterator[None]:
    """Cancel ``scope`` on the first SIGINT or SIGTERM; a second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(scope.cancel)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def replay_run(name: str, out: Path) -> Replayed:
    """Replay a run. The model it was run with is not opened: a live call would raise.

    Raises:
        ReplayDivergence: it comes to something else now.
    """
    settings = read_settings(out / name)
    with open_log(out) as log:
        model = _recorded_model(log, name)
    async with open_session(settings, out, model=model) as session:
        return await session.runner.replay(name)


def _recorded_model(log: RunLog, name: str) -> ScriptedModel | None:
    """Return a model without answers, under the name of the one that the run had."""
    executor = str(log.events(name)[0].data.get("executor", ""))
    found = re.search(r"model=(.*); queries=", executor)
    known = found[1] if found else "none"
    return None if known == "none" else ScriptedModel(name=known)


def give_answer(name: str, gate: str, text: str, out: Path) -> str:
    """Record an answer to an open gate; return what to tell the user. Errors as ``answer_gate``."""
    from agentrt.workflows.gates import answer_gate

    line = f"{name} {gate}: {text}"
    if not answer_gate(out, name, gate, text):
        line += f"\ngo on with: agentrt guide resume {name} --out {shlex.quote(str(out))}"
    return line


def remarks_of_model(path: Path, model: str, known: Sequence[Finding]) -> list[Finding]:
    """Return lint's findings with those that a model adds.

    Raises:
        ConfigError: there is no such model.
        GuideError: the guide cannot be read as one.
        ModelFailure: the model did not answer.
    """
    from agentrt.workflows.lint import lint_with_model

    async def ask() -> list[Finding]:
        async with open_model(SessionSettings(str(path), model=model), None) as opened:
            if opened is None:
                return list(known)
            return await lint_with_model(open_guide(path), opened, known)

    return anyio.run(ask)


async def propose_plan(path: Path, model: str) -> Proposal:
    """Return what a model proposes for a guide that is prose.

    Raises:
        ConfigError: there is no such model.
        GuideError: there is nothing to propose.
    """
    from agentrt.workflows.extract import propose

    settings = SessionSettings(str(path), model=model)
    async with open_model(settings, None) as opened:
        if opened is None:
            raise ConfigError("A proposal needs a model.", remedy="Give --model embedded or a URL.")
        return await propose(open_guide(path), opened)
