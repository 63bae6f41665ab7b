"""One cgroup that several calls have in turn: its open files, and the hold of each call on it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from pathlib import Path

from agentrt.resources.cgroup.control import Leaf
from agentrt.resources.cgroup.files import CgroupFiles, KeptFile

__all__ = ["PEAK", "Lease", "Slot"]

PEAK = "memory.max_usage_in_bytes"
KEPT = frozenset(
    {
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        PEAK,
        "memory.oom_control",
        "memory.pressure",
        "pids.max",
        "pids.peak",
        "pids.events",
        "cpu.stat",
        "cpu.cfs_quota_us",
        "cpu.cfs_burst_us",
        "cgroup.events",
    }
)
SURE = ("memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max")
"""Written for every call, even if they should hold the value: a call may have had the right to
change its own limits."""


class Slot:
    """The directories of one cgroup, its files that stay open, and what was written into them."""

    def __init__(self, place: str, leaves: Iterable[Leaf], files: CgroupFiles) -> None:
        self.place = place
        self.leaves = tuple(leaves)
        self.files = files
        self.lock = threading.Lock()
        self.procs = tuple(leaf.path / "cgroup.procs" for leaf in self.leaves)
        self.uses = 0
        self._kept: dict[str, KeptFile | None] = {}
        self._written: dict[str, str] = {}

    def kept(self, path: str) -> KeptFile | None:
        """The file if it is one of those that stay open."""
        if path not in self._kept:
            name = path.rpartition("/")[2]
            self._kept[path] = self.files.keep(path) if name in KEPT else None
        return self._kept[path]

    def write(self, path: str, value: str) -> OSError | None:
        """Write a setting."""
        file = self.kept(path)
        error = self.files.write(path, value) if file is None else file.write(value)
        if error is None:
            self._written[path] = value
        return error

    def holds(self, path: str, value: str) -> bool:
        """Whether ``value`` was the last that was written there."""
        return self._written.get(path) == value

    def renew(self, controller: str) -> bool:
        """Make the directory of one controller anew, for counters that only its end resets."""
        leaf = next(
            (leaf for leaf in self.leaves if controller in leaf.hierarchy.controllers), None
        )
        if leaf is None:
            return True
        with self.lock:
            self._forget(f"{leaf.path}/")
            try:
                gone = self.files.remove_one(leaf.path)
                if gone:
                    self.files.make(leaf.path)
            except OSError:
                return False  # it is then removed as a whole
        return gone

    def _forget(self, prefix: str) -> None:
        for path in [path for path in self._kept if path.startswith(prefix)]:
            file = self._kept.pop(path)
            if file is not None:
                file.close()
        self._written = {p: v for p, v in self._written.items() if not p.startswith(prefix)}

    def close(self) -> None:
        """Close its files; idempotent."""
        with self.lock:
            self._forget("")


class Lease(CgroupFiles):
    """A slot's files for one call. Once it is over, whoever still holds it changes nothing."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._sure: set[str] = set()
        self.over = False
        self.froze = False

    def end(self) -> None:
        """Let nothing through any more."""
        with self._slot.lock:
            self.over = True

    def read(self, path: Path | str) -> str | None:
        with self._slot.lock:
            if self.over:
                return None
            file = self._slot.kept(str(path))
            return self._slot.files.read(path) if file is None else file.read()

    def write(self, path: Path | str, value: str) -> OSError | None:
        text = str(path)
        name = text.rpartition("/")[2]
        with self._slot.lock:
            if self.over:
                return OSError(errno.ESTALE, "the tool call has ended")
            if name.startswith(("cgroup.", PEAK, "memory.force")):
                self.froze = self.froze or name == "cgroup.freeze"
                return self._slot.files.write(path, value)
            if self._slot.holds(text, value) and (name not in SURE or text in self._sure):
                return None
            self._sure.add(text)
            return self._slot.write(text, value)

    def pids(self, directory: Path) -> list[int]:
        return self._slot.files.pids(directory)

    def kill(self, pids: list[int]) -> None:
        with self._slot.lock:
            if not self.over:
                self._slot.files.kill(pids)

    def remove(self, directory: Path) -> bool:
        return self._slot.files.remove(directory)
