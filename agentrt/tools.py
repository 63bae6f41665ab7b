"""Tool calls as the program and the scheduler see them: a sandbox that reports what it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast, get_args, get_type_hints

from agentrt.lifecycle import ProgramLife
from agentrt.resources.learned import tool_name
from agentrt.resources.tickets import Progress
from agentrt.sandbox.base import ExecResult, OutputCallback, ProgressCallback, Sandbox
from agentrt.scheduling.plan import ToolEvent

__all__ = ["ReportingSandbox", "progress_event", "tool_name"]

PROGRESS: dict[Progress, str] = {
    "running": "started",
    "blocked": "blocked",
    "throttled": "throttled",
    "frozen": "frozen",
}
"""What the controller reports of a live call, as scheduling calls it. A kill shows at its end."""


def progress_event(program_id: str, context: str, kind: Progress, tool: str) -> ToolEvent | None:
    """The event that tells scheduling of a live call's progress; ``None`` if it knows none."""
    name = PROGRESS.get(kind)
    if name not in get_args(get_type_hints(ToolEvent)["kind"]):
        return None
    return ToolEvent(program_id, context, cast("Any", name), tool)


class Feed(Protocol):
    """Takes a tool's output while it runs."""

    def write(self, data: bytes) -> None: ...


def _both(callback: OutputCallback | None, feed: Feed | None) -> OutputCallback | None:
    if feed is None or callback is None:
        return callback if feed is None else feed.write

    def tell(data: bytes) -> None:
        callback(data)
        feed.write(data)

    return tell


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
        self,
        command: str | Sequence[str],
        *,
        context: str = "main",
        on_progress: ProgressCallback | None = None,
        on_stdout: OutputCallback | None = None,
        feed: Feed | None = None,
        **options: Any,
    ) -> ExecResult:
        """Run a tool call of ``context``; see ``Sandbox.exec`` for everything else.

        ``feed`` gets the standard output as it comes: what ``Program.open_chat`` returned.
        """

        def progress(kind: Progress) -> None:
            if on_progress is not None:
                on_progress(kind)
            event = progress_event(self._program_id, context, kind, tool)
            if event is not None:
                self._report(event)

        call_id = f"{self.sandbox_id}/{next(self._calls)}"
        tool = tool_name(command)
        self._life.start_tool(call_id)
        self._report(ToolEvent(self._program_id, context, "started", tool))
        exited = False
        try:
            result = await self._inner.exec(
                command, on_progress=progress, on_stdout=_both(on_stdout, feed), **options
            )
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
