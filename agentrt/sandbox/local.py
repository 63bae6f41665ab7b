"""Sandboxes whose files lie on this machine and whose tool calls are its own processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread

from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.common import Call, CommonSandbox
from agentrt.sandbox.files import SandboxFiles
from agentrt.sandbox.host import Host
from agentrt.sandbox.launcher import LocalProcess
from agentrt.sandbox.state import ENV_TOOL
from agentrt.sandbox.supervise import Group, ToolProcess
from agentrt.sandbox.trees import remove_tree

__all__ = ["PATH", "LocalSandbox"]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LocalSandbox(CommonSandbox):
    """Files below the run's directory; a kind adds the command line around a tool call."""

    def __init__(
        self,
        sandbox_id: str,
        workdir: str,
        spec: SandboxSpec,
        host: Host,
        places: Mapping[str, Path],
    ) -> None:
        super().__init__(sandbox_id, workdir, spec, host)
        self._files = SandboxFiles(places, workdir)

    @abstractmethod
    def _command_line(self, call: Call, procs: tuple[Path, ...]) -> tuple[list[str], bytes | None]:
        """The full argument vector, and what it reads on descriptor 8, if anything."""

    @abstractmethod
    def _environment(self, call: Call) -> dict[str, str]:
        """The environment of the outermost process."""

    async def _start(self, call: Call, group: Group) -> ToolProcess:
        argv, extra = self._command_line(call, group.procs)
        marker = {ENV_TOOL: self._host.marker(self.sandbox_id, call.tool)}
        return LocalProcess.spawn(
            argv, {**self._environment(call), **marker}, stdin=call.has_stdin, extra=extra
        )

    async def read_file(self, path: str, *, limit: int = 100 << 20) -> bytes:
        """Return a file's content; see ``Sandbox.read_file``."""
        self._check_open()
        return await to_thread.run_sync(self._files.read, path, limit)

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file; see ``Sandbox.write_file``."""
        self._check_open()
        await to_thread.run_sync(self._files.write, path, data)

    async def _remove(self) -> None:
        def remove() -> None:
            remove_tree(self._host.directory(self.sandbox_id))
            self._host.tree.drop_sandbox(self.sandbox_id)  # a program's place goes with the program

        await to_thread.run_sync(remove)
