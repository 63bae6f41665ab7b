"""What all providers do alike: register the run, remember what they made, probe for real."""

from __future__ import annotations

from abc import abstractmethod

import anyio
from anyio import CancelScope, to_thread

from agentrt.errors import AgentRTError, ConfigError, SandboxUnavailable
from agentrt.resources.governor import Governor
from agentrt.sandbox.base import ExecResult, Limits, Probe, Sandbox, SandboxProvider, SandboxSpec
from agentrt.sandbox.host import Host
from agentrt.sandbox.state import RunState
from agentrt.sandbox.trees import copy_tree

__all__ = ["PROBE_LIMITS", "CommonProvider", "check_spec", "limits_missing"]

PROBE_LIMITS = Limits(memory=128 << 20, cpu=1.0, pids=32)
PROBE_SECONDS = 30.0


class CommonProvider(SandboxProvider):
    """Makes sandboxes over one ``Host``, opened with the first of them."""

    confines: tuple[str, ...] = ()
    """What this kind enforces beside the limits."""
    open_gaps: tuple[tuple[str, str], ...] = ()
    """What this kind never enforces, with the remedy."""

    def __init__(self, state: RunState | None = None) -> None:
        self._state = state
        self._host: Host | None = None
        self._made: list[Sandbox] = []
        self._opening = anyio.Lock()
        self._closed = False
        self._governor: Governor | None = None

    async def govern(self, governor: Governor) -> None:
        """Have ``governor`` govern every tool call from now on; it stays its owner's to close."""
        async with self._opening:
            self._governor = governor
            if self._host is not None:
                await self._host.govern_by(governor)

    @abstractmethod
    async def _make(self, spec: SandboxSpec, host: Host) -> Sandbox:
        """Make one sandbox; leaves nothing behind when it raises."""

    @abstractmethod
    async def _obstacle(self) -> tuple[str, str] | None:
        """Why the kind cannot work here and the remedy, as far as can be said without trying."""

    def _probe_spec(self) -> SandboxSpec:
        return SandboxSpec(limits=PROBE_LIMITS)

    async def probe(self) -> Probe:
        """Run one real command under limits. Never raises."""
        obstacle = await self._obstacle()
        if obstacle is not None:
            return Probe(self.kind, ok=False, reason=obstacle[0], remedy=obstacle[1])
        try:
            async with await self.create(self._probe_spec()) as sandbox:
                done = await sandbox.exec(["/bin/sh", "-c", "exit 0"], timeout=PROBE_SECONDS)
        except AgentRTError as error:
            return Probe(self.kind, ok=False, reason=error.message, remedy=error.remedy)
        if not done.ok:
            return Probe(
                self.kind,
                ok=False,
                reason=f"a trial command ended with {done.status}, exit code {done.exit_code}",
                remedy="Run: agentrt sandbox check",
            )
        return self._working(done)

    def _working(self, done: ExecResult) -> Probe:
        missing = {**limits_missing(done), **dict(self.open_gaps)}
        limits = tuple(name for name in ("memory", "cpu", "pids") if name not in missing)
        return Probe(
            self.kind,
            ok=True,
            reason="a trial command ran",
            enforces=(*limits, *self.confines),
            missing=missing,
        )

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox; see ``SandboxProvider.create``."""
        if self._closed:
            raise SandboxUnavailable("The provider is closed.", remedy="Make a new one.")
        check_spec(spec)
        sandbox = await self._make(spec, await self._opened())
        self._made.append(sandbox)
        return sandbox

    async def _opened(self) -> Host:
        async with self._opening:
            if self._host is not None:
                return self._host
            with CancelScope(shield=True):
                self._host = host = await Host.open(self._state, self._governor)
            return host

    async def close(self) -> None:
        """Close every sandbox made here and remove the run's cgroups and record. Idempotent."""
        self._closed = True
        with CancelScope(shield=True):
            try:
                while self._made:
                    await self._made.pop().close()
            finally:
                host, self._host = self._host, None
                if host is not None:
                    await host.close()


def check_spec(spec: SandboxSpec) -> None:
    """Refuse a spec whose paths do not exist.

    Raises:
        ConfigError: ``source`` is no directory, or a ``readable`` path is relative or absent.
    """
    if spec.source is not None and not spec.source.is_dir():
        raise ConfigError(f"{spec.source} is not a directory.", remedy="Name one that exists.")
    for path in spec.readable:
        if not path.is_absolute() or not path.exists():
            raise ConfigError(
                f"{path} is not an absolute path of this machine.", remedy="Name one that exists."
            )


def limits_missing(done: ExecResult) -> dict[str, str]:
    """Pure: each limit that a result says was not enforced, with the reason and remedy."""
    lines = (line.partition(": ") for line in done.unenforced)
    return {name: rest for name, _, rest in lines}


async def fill(spec: SandboxSpec, host: Host, sandbox_id: str) -> None:
    """Make the sandbox's directory with ``work``, a copy of the source in it, and ``tmp``.

    Raises:
        ConfigError: the source cannot be copied.
    """

    def make() -> None:
        top = host.directory(sandbox_id)
        for inner in ("work", "tmp"):
            (top / inner).mkdir(parents=True)
        if spec.source is not None:
            copy_tree(spec.source, top / "work")

    try:
        await to_thread.run_sync(make)
    except OSError as error:
        raise ConfigError(
            f"Cannot copy {spec.source} into the sandbox: {error}.",
            remedy="Check that it can be read and that TMPDIR has room.",
        ) from error
