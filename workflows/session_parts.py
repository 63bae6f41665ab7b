"""The parts of a run: its settings, incident, recording, model and sandbox. See ``session.py``.

A run's settings are kept beside its log, so that a later process can resume it as it was begun.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from agentrt.errors import ConfigError, GuideError
from agentrt.workflows.guides import guide_name, shipped_guides
from agentrt.workflows.guides.cases import Case, load_case
from agentrt.workflows.models import GuideModel
from agentrt.workflows.testing_model import CaseModel

if TYPE_CHECKING:
    from agentrt.sandbox.base import Sandbox, SandboxProvider, SandboxSpec

__all__ = [
    "RECORDING",
    "SessionSettings",
    "find_case",
    "is_shipped",
    "open_model",
    "open_sandbox",
    "read_case",
    "read_settings",
    "recorded_sources",
    "recording_of",
    "save_settings",
]

RECORDING = "recording"
"""The folder beside a guide, or of a run, that holds recorded telemetry."""
API_KEY = "AGENTRT_API_KEY"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a run was begun. ``model`` is none, scripted, embedded or a URL; ``sandbox`` a kind.

    ``patience`` is how many seconds a question stays open before its default is taken.
    ``recorded`` says whether queries are answered from a recording instead of their sources;
    ``database`` is the SQLite file that the plugins of a guide in StepFly's layout ask.
    """

    guide: str
    incident: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    model: str = "none"
    model_name: str | None = None
    sandbox: str = "auto"
    workers: int = 5
    compat: bool = False
    patience: float = 600.0
    recorded: bool = False
    database: str | None = None


def save_settings(settings: SessionSettings, directory: Path) -> None:
    """Keep a run's settings in its directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(settings), indent=1, sort_keys=True)
    (directory / "run.json").write_text(text + "\n", encoding="utf-8")


def read_settings(directory: Path) -> SessionSettings:
    """Return the settings that a run was begun with.

    Raises:
        ConfigError: there is no such run, or its file is damaged.
    """
    file = directory / "run.json"
    try:
        return SessionSettings(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no run in {directory}.", remedy="List the runs: agentrt guide runs."
        ) from error
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is damaged: {error}.", remedy="Begin a new run.") from error


def find_case(guide: Path, text: str) -> Path:
    """Return an incident's file, given by path or by the name of one beside the guide.

    Raises:
        GuideError: there is none.
    """
    if Path(text).is_file():
        return Path(text)
    beside = guide.parent / "incidents" / f"{text}.toml"
    if beside.is_file():
        return beside
    known = ", ".join(sorted(p.stem for p in beside.parent.glob("*.toml"))) or "none"
    raise GuideError(f"There is no incident {text!r}.", remedy=f"Beside the guide are: {known}.")


def read_case(path: Path) -> Case:
    """Read an incident: a ``.toml`` file of ours, or an incident text in StepFly's layout.

    Raises:
        GuideError: something in it is wrong.
    """
    if path.suffix == ".toml":
        return load_case(path)
    from agentrt.workflows.stepfly import load_incident

    found = load_incident(path)
    return Case(id=found.id, title=found.title, parameters=dict(found.parameters), path=str(path))


def is_shipped(guide: Path) -> bool:
    """Whether this very file is a guide that ships with agentrt."""
    return guide.resolve() in {path.resolve() for path in shipped_guides().values()}


def recording_of(guide: Path, directory: Path) -> Path | None:
    """Return the folder of a guide's recorded telemetry; a shipped guide's is made now.

    ``directory`` is where it is made, once. None where there is no recording.

    Raises:
        ConfigError: it cannot be written.
    """
    beside = guide.parent / RECORDING
    if (beside / "sources.toml").is_file():
        return beside
    if not is_shipped(guide):
        return None
    from agentrt.workflows.guides.telemetry import write_telemetry

    target = directory / guide_name(guide)
    if not (target / "sources.toml").is_file():
        write_telemetry(target, guide_name(guide))
    return target


def recorded_sources(recording: Path) -> dict[str, dict[str, Any]]:
    """Return the sources of a recording, by name, with absolute paths.

    Raises:
        GuideError: its ``sources.toml`` cannot be read.
    """
    file = recording / "sources.toml"
    try:
        sources = tomllib.loads(file.read_text(encoding="utf-8")).get("source", {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise GuideError(
            f"{file}: the recording's sources cannot be read: {error}.",
            remedy='Write tables such as [source.main] with type = "sqlite" and path = "x.db".',
        ) from error
    base = recording.absolute()
    return {
        name: {**table, "path": str(base / table["path"])} if "path" in table else dict(table)
        for name, table in sources.items()
    }


@asynccontextmanager
async def open_model(
    settings: SessionSettings, case: Case | None
) -> AsyncIterator[GuideModel | None]:
    """Open the model that the settings name; None for ``none``.

    Raises:
        ConfigError: there is no model of that name, or it cannot be loaded.
    """
    async with AsyncExitStack() as stack:
        model = await _model(settings, case, stack)
        if model is not None:
            stack.push_async_callback(model.aclose)
        yield model


async def _model(
    settings: SessionSettings, case: Case | None, stack: AsyncExitStack
) -> GuideModel | None:
    name = settings.model
    if name == "none":
        return None
    if name == "scripted":
        if case is None:
            raise ConfigError(
                "A scripted model answers from an incident file, and none is given.",
                remedy="Give --incident FILE, or another --model.",
            )
        return CaseModel(case)
    if name == "embedded":
        from agentrt.runtime import Runtime
        from agentrt.workflows.models_runtime import RuntimeModel

        return RuntimeModel(await stack.enter_async_context(Runtime.open()))
    if name.startswith(("http://", "https://")):
        return await _http_model(name, settings.model_name, os.environ.get(API_KEY))
    raise ConfigError(
        f"There is no model {name!r}.",
        remedy="Choose none, scripted or embedded, or give a URL such as http://HOST:PORT/v1.",
    )


async def _http_model(url: str, name: str | None, api_key: str | None) -> GuideModel:
    """Return the model behind a URL; without a name, the first that the server lists."""
    from agentrt.workflows.models_http import HttpModel, HttpOptions, served_model

    served = await served_model(url, api_key=api_key)
    if name is None:
        name = served.name if served is not None else "default"
    options = HttpOptions(guided=served is not None and served.guided)
    return HttpModel(url, name, api_key=api_key, options=options)


@asynccontextmanager
async def open_sandbox(
    settings: SessionSettings,
) -> AsyncIterator[Callable[[SandboxSpec], Awaitable[Sandbox]] | None]:
    """Give what makes the sandboxes of a guide's commands; None where there are to be none.

    The kind is chosen, by trying, when the first command runs: most guides have none. Only guides
    that ship with agentrt may fall back to plain processes by themselves. Making a sandbox raises
    SandboxUnavailable where no permitted kind works.
    """
    if settings.sandbox == "none":
        yield None
        return
    async with AsyncExitStack() as stack:
        yield _Sandboxes(settings, stack).create


class _Sandboxes:
    def __init__(self, settings: SessionSettings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._provider: SandboxProvider | None = None
        self._choosing = anyio.Lock()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        from agentrt.sandbox import choose

        async with self._choosing:
            if self._provider is None:
                trusted = is_shipped(Path(self._settings.guide))
                choice = await choose(self._settings.sandbox, trusted=trusted)
                self._provider = choice.provider
                self._stack.push_async_callback(self._provider.close)
        return await self._provider.create(spec)
