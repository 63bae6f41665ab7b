"""One run of a guide put together: plan, queries, data, model, sandbox, log, nested guides.

Everything lies in one directory: ``log.db`` with all runs, ``data/`` with what queries returned,
``recordings/`` with made telemetry, and a folder for each run with its settings and its report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrt.errors import ConfigError, InvalidRequest
from agentrt.workflows.data import DataStore
from agentrt.workflows.events import Event
from agentrt.workflows.executor import ExecutorOptions, StepExecutor
from agentrt.workflows.guide import Guide, Step
from agentrt.workflows.guides import open_guide
from agentrt.workflows.guides.cases import Case
from agentrt.workflows.log import RunLog
from agentrt.workflows.models import GuideModel
from agentrt.workflows.person import Person
from agentrt.workflows.plan import Plan, make_plan
from agentrt.workflows.queries import QueryTemplates
from agentrt.workflows.run import GuideRunner, RunOptions, RunOutcome
from agentrt.workflows.schedule import ScheduleConfig
from agentrt.workflows.session_parts import (
    SessionSettings,
    open_model,
    open_sandbox,
    read_case,
    recorded_sources,
    recording_of,
)

if TYPE_CHECKING:
    from agentrt.sandbox.base import Sandbox, SandboxSpec

__all__ = ["Session", "open_log", "open_session"]

DEEPEST = 5
"""How many guides may run within one another."""


@dataclass(frozen=True, slots=True)
class Session:
    """What is needed to run, resume, replay or fork runs of one guide."""

    plan: Plan
    log: RunLog
    store: DataStore
    runner: GuideRunner
    model: GuideModel | None
    case: Case | None
    parameters: Mapping[str, str]
    directory: Path


def open_log(directory: Path) -> RunLog:
    """Open the log of all runs in a directory, which is made.

    Raises:
        ConfigError: the directory cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error}.", remedy="Give --out.") from error
    return RunLog(directory / "log.db")


@asynccontextmanager
async def open_session(
    settings: SessionSettings,
    directory: Path,
    *,
    person: Person | None = None,
    on_event: Callable[[Event], None] | None = None,
    model: GuideModel | None = None,
) -> AsyncIterator[Session]:
    """Open everything that the settings name, and close it again.

    Args:
        directory: where the log, the data and the reports are.
        person: answers gates and questions; None leaves them to other processes and to defaults.
        on_event: sees each event of the run after it was appended.
        model: instead of the one that the settings name; it stays the caller's.

    Raises:
        ConfigError: the guide, its queries, the incident or a setting is wrong.
    """
    path = Path(settings.guide)
    guide = open_guide(path)
    case = read_case(Path(settings.incident)) if settings.incident else None
    async with AsyncExitStack() as stack:
        log = stack.enter_context(open_log(directory))
        store = stack.enter_context(DataStore(directory / "data"))
        if model is None:
            model = await stack.enter_async_context(open_model(settings, case))
        sandbox = await stack.enter_async_context(open_sandbox(settings))
        maker = _Maker(settings, directory, log, store, model, case, sandbox, person)
        plan = make_plan(guide)
        parameters = {**(case.parameters if case else {}), **settings.parameters}
        runner = maker.runner(plan, on_event)
        yield Session(plan, log, store, runner, model, case, parameters, directory)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the runner of a guide, and those of the guides within it."""

    settings: SessionSettings
    directory: Path
    log: RunLog
    store: DataStore
    model: GuideModel | None
    case: Case | None
    sandbox: Callable[[SandboxSpec], Awaitable[Sandbox]] | None
    person: Person | None
    depth: int = 0

    def runner(self, plan: Plan, on_event: Callable[[Event], None] | None) -> GuideRunner:
        executor = StepExecutor(
            plan.guide,
            templates=self._templates(plan.guide),
            store=self.store,
            model=self.model,
            sandbox=self.sandbox,
            incident=self.case.text if self.case else "",
            nested=_Nested(replace(self, depth=self.depth + 1), plan.guide),
            options=ExecutorOptions(patience=self.settings.patience),
        )
        schedule = ScheduleConfig(
            workers=self.settings.workers,
            compat=self.settings.compat,
            ask_seconds=self.settings.patience,
            times=self.case.times if self.case and not self.depth else {},
        )
        return GuideRunner(
            plan,
            log=self.log,
            executor=executor,
            person=self.person,
            options=RunOptions(schedule=schedule),
            on_event=on_event,
        )

    def _templates(self, guide: Guide) -> QueryTemplates | None:
        path = Path(guide.path)
        if guide.source_format == "stepfly":
            return self._plugins(guide)
        if guide.queries_file is None:
            return None
        templates = QueryTemplates.load(path.parent / guide.queries_file)
        recording = self._recording()
        if recording is None:
            return templates
        sources = recorded_sources(recording)
        return templates.with_sources(
            {name: table for name, table in sources.items() if name in templates.sources}
        )

    def _plugins(self, guide: Guide) -> QueryTemplates | None:
        """Return the plugins of a guide in StepFly's layout as queries of the given database."""
        from agentrt.workflows.stepfly import load_stepfly_queries, queries_to_toml

        found = load_stepfly_queries(guide.path)
        if not found:
            return None
        if self.settings.database is None:
            raise ConfigError(
                f"{guide.path} has plugins, and nothing says which database they ask.",
                remedy="Give --database FILE, an SQLite file.",
            )
        source = {"type": "sqlite", "path": str(Path(self.settings.database).absolute())}
        return QueryTemplates.parse(queries_to_toml(found, source))

    def _recording(self) -> Path | None:
        if not self.settings.recorded:
            return None
        path = Path(self.settings.guide)
        found = recording_of(path, self.directory / "recordings")
        if found is None:
            raise ConfigError(
                f"{path.parent} holds no recorded telemetry.",
                remedy="Add a folder recording/ with a sources.toml; see docs/guides.md.",
            )
        return found


@dataclass(frozen=True, slots=True)
class _Nested:
    """Runs a guide that lies beside another one as a step of it, in the same log."""

    maker: _Maker
    parent: Guide

    async def __call__(
        self, step: Step, parameters: Mapping[str, str], run_id: str
    ) -> dict[str, Any]:
        """Run the guide that the step names, or go on with it where it was left.

        Raises:
            ConfigError: guides are nested too deeply, or this one is wrong.
        """
        if self.maker.depth > DEEPEST:
            raise ConfigError(
                f"{step.id} nests guides more than {DEEPEST} deep.", remedy="Flatten the guides."
            )
        plan = make_plan(open_guide(Path(self.parent.path).parent / str(step.guide)))
        known = {parameter.name for parameter in plan.guide.parameters}
        given = {name: value for name, value in parameters.items() if name in known}
        outcome = await self._run(self.maker.runner(plan, None), given, run_id)
        return {
            "run_id": outcome.run_id,
            "status": outcome.status,
            "reason": outcome.reason,
            "conclusion": outcome.conclusion,
            "findings": dict(outcome.findings),
            "tokens": outcome.tokens,
            "cached_tokens": outcome.cached_tokens,
        }

    async def _run(
        self, runner: GuideRunner, parameters: Mapping[str, str], run_id: str
    ) -> RunOutcome:
        """Go on with the step's own run; where that has failed, this is a retry: begin another."""
        name, number = run_id, 1
        while self._known(name):
            outcome = runner.outcome(name)
            if outcome.status == "running":
                return await runner.resume(name)
            if outcome.status in ("succeeded", "inconclusive"):
                return outcome
            number += 1
            name = f"{run_id}~{number}"
        return await runner.run(parameters, run_id=name)

    def _known(self, run_id: str) -> bool:
        with suppress(InvalidRequest):
            self.maker.log.run(run_id)
            return True
        return False
