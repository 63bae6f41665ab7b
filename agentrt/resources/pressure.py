"""Memory, CPU and I/O pressure of a cgroup as events: PSI triggers and ``memory.events``.

A PSI trigger costs nothing until tasks stall. With CAP_SYS_RESOURCE the kernel checks a window of
half a second ten times per window; without it only windows of a multiple of two seconds are
taken, checked every two seconds. Where no trigger can be made, totals are polled. Each source says
which of the three it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from agentrt.resources.watch import Clock, Watcher

__all__ = [
    "MemoryEventsSource",
    "PressureEvent",
    "PressureSource",
    "PsiSource",
    "Stall",
    "parse_pressure",
    "watch_memory_events",
    "watch_pressure",
]

Backend: TypeAlias = Literal["trigger", "slow-trigger", "poll"]

SHORT_WINDOW = 0.5
UNPRIVILEGED_WINDOW = 2.0
POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class PressureEvent:
    """Tasks of a cgroup stalled, or its memory counters moved.

    ``file`` is the file that reported. A PSI event has the stall totals in seconds since boot of
    the cgroup (``some``, ``full``); a memory event has how much each counter grew (``grew``).
    """

    file: Path
    time: float
    some: float = 0.0
    full: float = 0.0
    grew: Mapping[str, int] = field(default_factory=dict)


PressureSink: TypeAlias = Callable[[PressureEvent], None]


@dataclass(frozen=True, slots=True)
class Stall:
    """Fire when tasks stalled ``seconds`` in total within a window of ``window`` seconds.

    ``some``: at least one task waits; ``full``: none makes progress.
    """

    seconds: float = 0.05
    window: float = SHORT_WINDOW
    level: Literal["some", "full"] = "some"

    def trigger(self, window: float) -> bytes:
        """The text that the kernel takes, for this window."""
        return f"{self.level} {round(self.seconds * 1e6)} {round(window * 1e6)}\0".encode()


def parse_pressure(text: str) -> dict[str, float]:
    """Stall totals in seconds by level from the text of a ``*.pressure`` file."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        level, *pairs = line.split()
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key == "total" and value.isdigit():
                totals[level] = int(value) / 1e6
    return totals


class PsiSource:
    """A watched ``*.pressure`` file; close it before its cgroup is removed, or leave it to us."""

    def __init__(
        self, watcher: Watcher, file: Path, stall: Stall, sink: PressureSink, clock: Clock
    ) -> None:
        self.file = file
        self.stall = stall
        self.backend: Backend = "poll"
        self.window = stall.window
        """The window in force, seconds."""
        self.reason = ""
        """Why it is not a trigger with the asked window; empty when it is."""
        self._watcher, self._sink, self._clock = watcher, sink, clock
        self._fd = -1
        self._timer = 0
        self._last = self._totals()
        self._arm()

    def _totals(self) -> dict[str, float]:
        return parse_pressure(self.file.read_text())

    def _arm(self) -> None:
        slow = max(UNPRIVILEGED_WINDOW, round(self.stall.window / 2) * UNPRIVILEGED_WINDOW)
        choices: tuple[tuple[Backend, float], ...] = (
            ("trigger", self.stall.window),
            ("slow-trigger", slow),
        )
        for backend, window in choices:
            error = self._try_trigger(window)
            if error is None:
                self.backend, self.window = backend, window
                return
            self.reason = _why(error)
        self.window = POLL_SECONDS
        self._timer = self._watcher.every(POLL_SECONDS, self._poll)

    def _try_trigger(self, window: float) -> OSError | None:
        try:
            fd = os.open(self.file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return error
        try:
            os.write(fd, self.stall.trigger(window))
            self._watcher.add(fd, select.EPOLLPRI, self._fired)
        except OSError as error:
            os.close(fd)
            return error
        self._fd = fd
        return None

    def _fired(self) -> None:
        try:
            totals = self._totals()
        except OSError:
            # The cgroup is gone: its trigger reports an error for ever, so stop listening.
            self.close()
            return
        self._emit(totals)

    def _emit(self, totals: Mapping[str, float]) -> None:
        some, full = totals.get("some", 0.0), totals.get("full", 0.0)
        self._sink(PressureEvent(self.file, self._clock(), some=some, full=full))

    def _poll(self) -> None:
        try:
            totals = self._totals()
        except OSError:
            self.close()
            return
        level = self.stall.level
        grown = totals.get(level, 0.0) - self._last.get(level, 0.0)
        self._last = totals
        # Scaled to the shorter period: the same share of stalled time fires.
        if grown >= self.stall.seconds * POLL_SECONDS / self.stall.window:
            self._emit(totals)

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._fd >= 0:
            self._watcher.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer:
            self._watcher.cancel(self._timer)
            self._timer = 0


def _why(error: OSError) -> str:
    if error.errno == errno.EINVAL:
        return "windows that are no multiple of 2 s need CAP_SYS_RESOURCE"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "the file may not be written: run as root or have the cgroup delegated"
    if error.errno == errno.EOPNOTSUPP:
        return "PSI is off: boot with psi=1"
    return error.strerror or str(error)


class MemoryEventsSource:
    """A watched ``memory.events`` (or ``.local``): the kernel tells each time a counter moves."""

    backend: Backend = "trigger"
    reason = ""

    def __init__(self, watcher: Watcher, file: Path, sink: PressureSink, clock: Clock) -> None:
        self.file = file
        self._watcher, self._sink, self._clock = watcher, sink, clock
        self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._last = self._read()
        watcher.add(self._fd, select.EPOLLPRI, self._fired)

    def _read(self) -> dict[str, int]:
        text = os.pread(self._fd, 4096, 0).decode()
        pairs = (line.split() for line in text.splitlines())
        return {name: int(value) for name, value in pairs}

    def _fired(self) -> None:
        try:
            now = self._read()
        except OSError:
            self.close()
            return
        grew = {name: n - self._last.get(name, 0) for name, n in now.items()}
        self._last = now
        if grew := {name: n for name, n in grew.items() if n}:
            self._sink(PressureEvent(self.file, self._clock(), grew=grew))

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._fd >= 0:
            self._watcher.remove(self._fd)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


PressureSource: TypeAlias = PsiSource | MemoryEventsSource


def watch_pressure(
    watcher: Watcher,
    file: Path,
    sink: PressureSink,
    stall: Stall | None = None,
    clock: Clock = time.monotonic,
) -> PsiSource:
    """Call ``sink`` when ``file`` (``memory.pressure``, ``cpu.pressure`` …) reports a stall.

    Raises:
        OSError: the file is not there or cannot be read, as where the kernel has no PSI.
    """
    return PsiSource(watcher, file, stall or Stall(), sink, clock)


def watch_memory_events(
    watcher: Watcher, file: Path, sink: PressureSink, clock: Clock = time.monotonic
) -> MemoryEventsSource:
    """Call ``sink`` when a counter of ``memory.events`` moves: high, max, oom, oom_kill.

    Raises:
        OSError: the file is not there: no memory controller in this cgroup of the v2 tree.
    """
    return MemoryEventsSource(watcher, file, sink, clock)
