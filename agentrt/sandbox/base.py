"""The sandbox interface: what every kind promises, and the data that crosses it.

A provider makes sandboxes; a sandbox runs tool calls. Each tool call is born in a cgroup of its own
and is gone when its result is returned: completion is exit, a short drain of the pipes, and a kill
of whatever is left in the cgroup. What a host cannot enforce is listed in the result, never hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from agentrt.resources.feedback import Feedback
from agentrt.resources.governor import Governor
from agentrt.resources.intent import Intent
from agentrt.resources.tickets import Progress

__all__ = [
    "ExecResult",
    "ExecStatus",
    "Limits",
    "Probe",
    "ResourceUsage",
    "Sandbox",
    "SandboxKind",
    "SandboxProvider",
    "SandboxSpec",
]

SandboxKind: TypeAlias = Literal["docker", "bubblewrap", "process"]
ExecStatus: TypeAlias = Literal["exited", "timeout", "out_of_memory", "cancelled", "killed"]
OutputCallback: TypeAlias = Callable[[bytes], None]
ProgressCallback: TypeAlias = Callable[[Progress], None]

DEFAULT_OUTPUT_CAP = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one tool call. ``None`` means not limited. Memory in bytes, CPU in cores."""

    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What the tool's own cgroup measured; ``None`` where the host has no such counter."""

    peak_memory: int | None = None
    cpu_seconds: float | None = None
    peak_pids: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    memory_limit: int | None = None
    waited: float | None = None
    frozen: float | None = None
    throttled: float | None = None
    """Seconds that it waited before it started, stood still, and was slowed at its memory limit;
    ``None`` where nobody governed it."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The outcome of one tool call.

    ``exit_code`` is the command's own (128 + signal when a signal ended it), ``None`` only when it
    was killed by us before it ended. A non-zero exit is a result, not an error. ``stdout`` and
    ``stderr`` are bytes, cut at the cap with a mark in the text and the flag set. ``unenforced``
    names each asked limit that this host could not set, with the remedy. ``killed`` as a status
    means that the resource controller ended it; ``feedback`` says why, and more.
    """

    status: ExecStatus
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    duration: float
    resources: ResourceUsage
    unenforced: tuple[str, ...] = ()
    feedback: Feedback | None = None

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.status == "exited" and self.exit_code == 0

    def check(self) -> Self:
        """Return self if ``ok``.

        Raises:
            ToolTimeout, ToolOutOfMemory, SandboxError: by what went wrong.
        """
        from agentrt.sandbox.outcome import raise_for  # keeps this file free of messages

        if not self.ok:
            raise_for(self)
        return self


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox is made with.

    ``image`` is a Docker image name (only the ``docker`` kind uses it). ``source`` is a host
    directory whose content is copied into the work directory when the sandbox starts. ``readable``
    names further host paths that show read-only at the same place inside. ``limits`` are defaults
    of every tool call. ``labels`` end up wherever the kind can put them. ``tenant`` and ``program``
    say whose budgets count where calls are governed; ``intent`` is the default of every call.
    """

    image: str | None = None
    source: Path | None = None
    readable: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    network: Literal["none", "host"] = "none"
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    program: str | None = None
    intent: Intent | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a kind works on this machine: tried for real, not guessed from files.

    ``enforces`` names what it can limit here (``memory``, ``cpu``, ``pids``, ``filesystem``,
    ``network``); ``missing`` maps what it cannot to the remedy.
    """

    kind: SandboxKind
    ok: bool
    reason: str
    remedy: str = ""
    enforces: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


class Sandbox(ABC):
    """A place where one program's tool calls run. An async context manager that closes itself."""

    kind: SandboxKind
    sandbox_id: str
    workdir: str
    """The work directory as commands inside see it; relative paths start there."""

    @abstractmethod
    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        limits: Limits | None = None,
        output_cap: int = DEFAULT_OUTPUT_CAP,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        intent: Intent | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> ExecResult:
        """Run one tool call in its own cgroup and wait until nothing of it is left.

        A string runs under ``/bin/sh -c`` (``bash -c`` where there is one), a sequence as it is.
        ``timeout`` is in seconds; past it the whole tree is killed and ``status`` is ``timeout``.
        Each output stream is kept up to ``output_cap`` bytes; callbacks see every byte up to the
        cap as it arrives. Cancelling the awaiting task kills the tree before the cancellation goes
        on. Several calls may run at the same time.

        ``intent`` says what the call needs, before an ``intent`` block around it, the command's own
        ``AGENT_RESOURCE_HINT``, and the sandbox's default. The call may then wait before it starts
        and stand still for a bounded time, which does not count against ``timeout``.
        ``on_progress`` is told of that, from any thread.

        Raises:
            ToolNotStarted: the command or its work directory does not exist, or is not executable,
                or the resource controller refused it.
            SandboxGone: the sandbox is closed.
        """

    @abstractmethod
    async def read_file(self, path: str, *, limit: int = 100 << 20) -> bytes:
        """Return a file's content; a relative path starts at ``workdir``.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: as named.
            OutputLimitExceeded: the file is larger than ``limit`` bytes.
        """

    @abstractmethod
    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file, making its parent directories. Same paths and errors as ``read_file``."""

    @abstractmethod
    async def close(self) -> None:
        """Kill what runs, remove every trace. Idempotent; shielded from cancellation."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class SandboxProvider(ABC):
    """Makes sandboxes of one kind. An async context manager: leaving it removes all it made."""

    kind: SandboxKind

    @abstractmethod
    async def probe(self) -> Probe:
        """Try the kind for real on this machine. Never raises."""

    @abstractmethod
    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox.

        Raises:
            SandboxUnavailable: this kind does not work here; the remedy says what to install.
            ConfigError: the spec asks for what this kind refuses.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every sandbox made here and release the run's records. Idempotent."""

    async def govern(self, governor: Governor) -> None:  # noqa: B027
        """Have ``governor`` govern every tool call from now on.

        A provider that makes no cgroups of its own leaves its calls as they are.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
