"""One tool call from start to nothing left: exit, short drain, kill of the group, removal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
from anyio import CancelScope, to_thread

from agentrt.resources.cgroup import Counters
from agentrt.sandbox.output import Capture

__all__ = ["Ended", "Group", "ToolProcess", "extinguish", "supervise"]

DRAIN = 0.2
"""Seconds that output may still arrive after the command itself has ended."""
LAST_DRAIN = 1.0
"""Seconds for the end of the streams once everything that could write is dead."""
KILL_SECONDS = 10.0


class Group(Protocol):
    """All processes of one tool call, killable as one."""

    unenforced: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]: ...
    @property
    def procs(self) -> tuple[Path, ...]: ...
    def kill(self) -> None: ...
    def populated(self) -> bool: ...
    def counters(self) -> Counters: ...
    def lean(self) -> bool: ...
    def remove(self) -> bool: ...


class ToolProcess(ABC):
    """The first process of a tool call, however it was started."""

    @abstractmethod
    async def pump(self, stdout: Capture, stderr: Capture) -> None:
        """Move output until the streams end."""

    @abstractmethod
    async def feed(self, stdin: bytes) -> None:
        """Write all of ``stdin``, then end it."""

    @abstractmethod
    async def wait(self) -> int:
        """Wait for the command itself and return its exit code (128 + n for signal n)."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL the process itself; nothing when it has ended."""

    @abstractmethod
    def started(self) -> bool:
        """After its end: whether the command ran, rather than only what starts it."""

    @abstractmethod
    def close(self) -> None:
        """Release descriptors. Idempotent."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a tool call ended. ``code`` is ``None`` when we killed it; ``clean`` whether it is gone.

    ``started`` is false when the command's turn never came.
    """

    code: int | None
    started: bool
    duration: float
    counters: Counters
    clean: bool


async def supervise(
    start: Callable[[], Awaitable[ToolProcess]],
    group: Group,
    stdout: Capture,
    stderr: Capture,
    *,
    stdin: bytes | None,
    timeout: float | None,
    allowance: Callable[[], float] = lambda: 0.0,
    measure: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a tool call and return when nothing of it is left.

    The time limit covers the start; ``allowance`` returns the seconds that are added to it, as for
    time that the call stood still. ``measure`` is called before the group is removed. However this
    ends, cancellation and errors of a callback included, the group is killed, waited for and
    removed first.
    """
    begun = anyio.current_time()
    deadline = math.inf if timeout is None else begun + timeout
    process: ToolProcess | None = None
    code: int | None = None
    dead = False
    try:
        with CancelScope(deadline=deadline):
            process = await start()
        if process is not None:
            code, dead = await _attend(process, group, stdout, stderr, stdin, deadline, allowance)
        duration = anyio.current_time() - begun
        started = process is not None and process.started()
        counters, clean = await extinguish(group, process, measure, dead=dead)
        return Ended(code, started, duration, counters, clean)
    except BaseException:
        await extinguish(group, process)
        raise
    finally:
        if process is not None:
            process.close()


async def _attend(
    process: ToolProcess,
    group: Group,
    stdout: Capture,
    stderr: Capture,
    stdin: bytes | None,
    deadline: float,
    allowance: Callable[[], float],
) -> tuple[int | None, bool]:
    """Return the exit code, if the command ended by itself, and whether all of it is dead."""
    code: int | None = None
    dead = False
    pumped = anyio.Event()

    async def pump() -> None:
        await process.pump(stdout, stderr)
        pumped.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pump)
            if stdin is not None:
                tasks.start_soon(process.feed, stdin)
            code = await _wait(process, deadline, allowance)
            if code is not None:
                with anyio.move_on_after(DRAIN):
                    await pumped.wait()
            dead = await _kill(group, process)
            with anyio.move_on_after(LAST_DRAIN):
                await pumped.wait()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # One failure, as of a callback, is that failure; the group around it is our own detail.
        raise _only(errors) from None
    return code, dead


async def _wait(
    process: ToolProcess, deadline: float, allowance: Callable[[], float]
) -> int | None:
    """Wait for the end, up to the deadline and what is added to it meanwhile."""
    allowed = deadline
    while True:
        with CancelScope(deadline=allowed):
            return await process.wait()
        more = deadline + allowance()
        if more <= allowed + 0.001:
            return None
        allowed = more


def _only(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup) and len(errors.exceptions) == 1:
        errors = errors.exceptions[0]
    return errors


async def _kill(group: Group, process: ToolProcess | None) -> bool:
    """Kill until the group is empty; ``False`` if something survives for ``KILL_SECONDS``."""
    alive = True
    with CancelScope(shield=True):
        deadline = anyio.current_time() + KILL_SECONDS
        pause = 0.0005
        while alive := await _alive(group, process):
            group.kill()
            if process is not None:
                process.kill()
            if anyio.current_time() > deadline:
                break
            await anyio.sleep(pause)
            pause = min(0.05, pause * 2)
    return not alive


async def _alive(group: Group, process: ToolProcess | None) -> bool:
    """Whether anything lives; the process is given a moment to be waited for."""
    if group.populated():
        return True
    if process is None:
        return False
    with anyio.move_on_after(0.01) as moment:
        await process.wait()
    return moment.cancelled_caught


async def extinguish(
    group: Group,
    process: ToolProcess | None,
    measure: Callable[[], None] = lambda: None,
    *,
    dead: bool = False,
) -> tuple[Counters, bool]:
    """Kill, read the counters, remove the group; also returns whether all of it is gone.

    ``dead``: it has been killed and waited for already.
    """
    clean, counters = False, Counters()
    with CancelScope(shield=True):
        dead = dead or await _kill(group, process)
        if group.lean():
            # A switch to another thread and back would take longer than the removal itself.
            counters, clean = _last_look(group, measure)
        else:
            counters, clean = await to_thread.run_sync(_last_look, group, measure)
        for attempt in range(12):
            if clean:
                break
            # The kernel may call an emptied directory busy for a moment longer.
            await anyio.sleep(0.001 * 2**attempt)
            clean = await to_thread.run_sync(group.remove)
        clean = clean and dead
    return counters, clean


def _last_look(group: Group, measure: Callable[[], None]) -> tuple[Counters, bool]:
    measure()
    return group.counters(), group.remove()
