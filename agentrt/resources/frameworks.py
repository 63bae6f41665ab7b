"""A program's framework: the agent itself, moved into a cgroup beside its tool calls and back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentrt.resources.cgroup import Layout, ToolGroup

__all__ = ["Framework", "homes", "move"]


@dataclass(frozen=True, slots=True)
class Framework:
    """The group of a framework, and where its process came from in each hierarchy."""

    group: ToolGroup
    pid: int
    origin: tuple[Path, ...]

    def release(self) -> None:
        """Move what is in the group back to where its first process came from, and remove it.

        Blocking. What cannot be moved stays, and so do the directories.
        """
        for path in self.group.procs:
            with contextlib.suppress(OSError):
                for pid in path.read_text().split():
                    move(int(pid), self.origin)
        self.group.remove()


def homes(pid: int, layout: Layout, proc: Path = Path("/proc")) -> tuple[Path, ...]:
    """The ``cgroup.procs`` files of the cgroups that a process is in. Blocking.

    Raises:
        OSError: there is no such process.
    """
    text = (proc / str(pid) / "cgroup").read_text()
    places = dict(_lines(text))
    out: list[Path] = []
    for hierarchy in layout.hierarchies:
        found = places.get(hierarchy.controllers if hierarchy.version == 1 else frozenset())
        if found is not None:
            out.append(hierarchy.mount / found.lstrip("/") / "cgroup.procs")
    return tuple(out)


def _lines(text: str) -> Iterable[tuple[frozenset[str], str]]:
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield frozenset(parts[1].split(",")) - {""}, parts[2]


def move(pid: int, procs: Iterable[Path]) -> None:
    """Move a process into cgroups. Raises OSError as the kernel answers."""
    for path in procs:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(handle, str(pid).encode())
        finally:
            os.close(handle)
