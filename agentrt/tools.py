"""Tool calls as the program and the scheduler see them: a sandbox that reports what it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from agentrt.lifecycle import ProgramLife
from agentrt.resources.learned import tool_name
from agentrt.sandbox.base import ExecResult, Sandbox
from agentrt.scheduling.plan import ToolEvent

__all__ = ["ReportingSandbox", "tool_name"]


class ReportingSandbox(Sandbox):
    """Passes everything on to another sandbox, and reports each tool call's start and end."""

    def __init__(
        self,
        inner: Sandbox,
        program_id: str,
        life: ProgramLife,
        report: Callable[[ToolEvent], None],
    ) -> None:
        self.kind = inner.kind
        self.sandbox_id = inner.sandbox_id
        self.workdir = inner.workdir
        self._inner = inner
        self._program_id = program_id
        self._life = life
        self._report = report
        self._calls = itertools.count()

    async def exec(
        self, command: str | Sequence[str], *, context: str = "main", **options: Any
    ) -> ExecResult:
        """Run a tool call of ``context``; see ``Sandbox.exec`` for everything else."""
        call_id = f"{self.sandbox_id}/{next(self._calls)}"
        tool = tool_name(command)
        self._life.start_tool(call_id)
        self._report(ToolEvent(self._program_id, context, "started", tool))
        exited = False
        try:
            result = await self._inner.exec(command, **options)
            exited = result.status == "exited"
            return result
        finally:
            self._life.end_tool(call_id)
            kind: Literal["ended", "killed"] = "ended" if exited else "killed"
            self._report(ToolEvent(self._program_id, context, kind, tool))

    async def read_file(self, path: str, *, limit: int = 100 << 20) -> bytes:
        """Read a file; see ``Sandbox.read_file``."""
        return await self._inner.read_file(path, limit=limit)

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file; see ``Sandbox.write_file``."""
        await self._inner.write_file(path, data)

    async def close(self) -> None:
        """Close the sandbox; see ``Sandbox.close``."""
        await self._inner.close()
