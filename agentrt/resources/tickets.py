"""A tool call between its sandbox and the driver: admitted or not, and what is done to it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

import anyio

from agentrt.resources import control_events as ev
from agentrt.resources.cgroup import Control

__all__ = ["Progress", "Ticket"]

Progress: TypeAlias = Literal["running", "blocked", "throttled", "frozen", "killed"]


class Ticket:
    """One governed call. The driver changes it under its lock; the sandbox waits and reads."""

    def __init__(
        self,
        spec: ev.CallSpec,
        kill_group: Callable[[], None] = lambda: None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.call = spec.call
        self.on_progress = on_progress
        self.kill_group = kill_group
        self.admitted = False
        self.refused = ""
        self.killed = ""
        self.killed_for: ev.KillReason | None = None
        self.winner: str | None = None
        self.place = 0
        self.why = ""
        self.reserved = 0
        self.borrowed = 0
        self.limit = spec.claim
        self.headroom = max(0, spec.claim - spec.soft) if spec.soft else 0
        self.control: Control | None = None
        self.frozen = False
        self.weight: int | None = None
        self.on_weight: Callable[[int], None] = lambda _: None
        self.blocked = False
        self.cpu: float | None = None
        self.idle_looks = 0
        self._memory: int | None = None
        self._bell: int | None = None
        self._lock = threading.Lock()

    def admit(self, reserved: int, borrowed: int) -> None:
        """It may start."""
        self.admitted, self.reserved, self.borrowed = True, reserved, borrowed
        self._ring()

    def refuse(self, why: str) -> None:
        """It will not start."""
        self.refused = why
        self._ring()

    def kill(self, action: ev.Kill, winner: Ticket | None) -> None:
        """Kill what runs of it; ``winner`` is the call that goes before it."""
        self.killed, self.killed_for = action.why, action.reason
        self.winner = self.called(winner)
        self.kill_group()
        self._ring()

    def called(self, other: Ticket | None) -> str | None:
        """What another call may be called in this one's feedback: tenants do not see each other."""
        if other is None:
            return None
        if other.spec.tenant != self.spec.tenant:
            return "another tenant's tool call"
        return f"a tool call of {other.spec.program}"

    def attach(self, control: Control) -> None:
        """It has its cgroup."""
        self.control = control

    def detach(self) -> None:
        """Its cgroup is gone, or goes."""
        self.control = None
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    def memory(self) -> int | None:
        """Bytes in use; ``None`` while it has no cgroup, or one that does not count."""
        handle = self._open_memory() if self._memory is None else self._memory
        if handle is None:
            return None
        try:
            return int(os.pread(handle, 32, 0))
        except (OSError, ValueError):
            return None

    def _open_memory(self) -> int | None:
        """Keep the file of its usage open from the first look on: more will follow."""
        path = None if self.control is None else self.control.memory_file()
        if path is not None:
            with contextlib.suppress(OSError):
                self._memory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._memory

    async def decided(self) -> None:
        """Wait until it is admitted, refused or killed."""
        with self._lock:
            if self._settled:
                return
            self._bell = bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            while not self._settled:
                await anyio.wait_readable(bell)
        finally:
            with self._lock:
                self._bell = None
            os.close(bell)

    @property
    def _settled(self) -> bool:
        return self.admitted or bool(self.refused or self.killed)

    def _ring(self) -> None:
        with self._lock:
            if self._bell is not None:
                os.eventfd_write(self._bell, 1)
