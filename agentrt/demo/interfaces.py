"""What the demo needs of a runtime. ``agentrt.runtime.Runtime`` fits; tests bring a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from agentrt.sandbox.base import Sandbox, SandboxSpec
from agentrt.scheduling.plan import SchedulerStatistics, TurnStats

__all__ = ["EngineFigures", "ProgramLike", "RuntimeLike", "TurnOutcome"]


class TurnOutcome(Protocol):
    """A turn that ended."""

    @property
    def text(self) -> str:
        """The emitted text."""
        ...

    @property
    def stats(self) -> TurnStats:
        """The turn's account."""
        ...


class ProgramLike(Protocol):
    """One program; leaving it closes its sandboxes and releases its KV."""

    async def __aenter__(self) -> Self:
        """Begin."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object:
        """End the program."""
        ...

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        forced_text: str | None = None,
        next_tool: str | None = None,
        last: bool = False,
    ) -> TurnOutcome:
        """Run one turn; with ``forced_text`` its output is that text, computed for real."""
        ...

    async def sandbox(self, spec: SandboxSpec | None = None) -> Sandbox:
        """Make a sandbox that lives no longer than the program."""
        ...


class EngineFigures(Protocol):
    """The engine's figures as of its last step."""

    @property
    def scheduler(self) -> SchedulerStatistics:
        """Queues and page pool."""
        ...


class RuntimeLike(Protocol):
    """Makes programs and tells figures."""

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that turns and pins are accounted in, in seconds."""
        ...

    def program(self, program_id: str | None = None, *, tenant: str = "default") -> ProgramLike:
        """Return a program to enter."""
        ...

    def statistics(self) -> EngineFigures:
        """Return the engine's figures."""
        ...
