"""Best effort where no cgroup can be made: find a tool call's processes by what they inherit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentrt.resources.cgroup import Counters
from agentrt.sandbox.state import ENV_TOOL

__all__ = ["TrackedGroup", "descendants", "kill_marked", "marked"]

BEST_EFFORT = (
    "cgroup: no cgroup can be made here, so processes are found by their environment and their "
    "parents, and one that hides from both survives. Run as root, or inside a delegated unit."
)


def marked(prefix: str, proc: Path = Path("/proc")) -> set[int]:
    """Live processes whose environment says that they belong to a tool call under ``prefix``."""
    found: set[int] = set()
    wanted = f"{ENV_TOOL}={prefix}".encode()
    for pid in _pids(proc):
        with contextlib.suppress(OSError):
            content = (proc / str(pid) / "environ").read_bytes()
            if any(entry.startswith(wanted) for entry in content.split(b"\0")):
                found.add(pid)
    return found - {os.getpid()}


def descendants(roots: set[int], parents: Mapping[int, int]) -> set[int]:
    """Pure: ``roots`` and all below them, given each process's parent."""
    found = set(roots)
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return found


def _pids(proc: Path) -> Iterator[int]:
    for name in os.listdir(proc):
        if name.isdigit():
            yield int(name)


def _parents(proc: Path) -> dict[int, int]:
    out: dict[int, int] = {}
    for pid in _pids(proc):
        with contextlib.suppress(OSError):
            text = (proc / str(pid) / "stat").read_text()
            fields = text[text.rfind(")") + 2 :].split()
            if fields[0] not in ("Z", "X"):
                out[pid] = int(fields[1])
    return out


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_marked(prefix: str, proc: Path = Path("/proc")) -> set[int]:
    """SIGKILL every process marked with ``prefix`` and what it started; return their ids."""
    found = descendants(marked(prefix, proc), _parents(proc))
    # Stop them all first: a list of a tree that goes on forking is out of date at once.
    _signal(found, signal.SIGSTOP)
    found |= descendants(found | marked(prefix, proc), _parents(proc))
    _signal(found, signal.SIGKILL)
    return found


class TrackedGroup:
    """Stands in for a cgroup: same methods, weaker promise, which ``unenforced`` states."""

    paths: tuple[Path, ...] = ()
    procs: tuple[Path, ...] = ()

    def __init__(self, tool: str, unenforced: tuple[str, ...]) -> None:
        self._tool = tool
        self.unenforced = (*unenforced, BEST_EFFORT)

    def kill(self) -> None:
        """Kill what can be found."""
        kill_marked(self._tool)

    def populated(self) -> bool:
        """Whether a process that can be found is alive."""
        alive = _parents(Path("/proc"))
        return any(pid in alive for pid in marked(self._tool))

    def counters(self) -> Counters:
        """Nothing is measured."""
        return Counters()

    def lean(self) -> bool:
        """It holds nothing of its own."""
        return True

    def remove(self) -> bool:
        """There is nothing to remove."""
        return True
