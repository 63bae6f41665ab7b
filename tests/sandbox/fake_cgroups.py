"""A stand-in for the kernel: cgroup directories in a temporary directory."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from agentrt.resources.cgroup import CgroupFiles, Hierarchy, Layout
from agentrt.resources.cgroup.files import KeptFile

V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "max",
        "memory.max_usage_in_bytes": "4096",
        "memory.usage_in_bytes": "2048",
        "memory.memsw.limit_in_bytes": "max",
        "memory.failcnt": "7",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
    },
    "cpu": {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_burst_us": "0",
        "cpu.shares": "1024",
        "cpu.stat": "nr_throttled 1\nthrottled_time 250000000",
    },
    "pids": {"pids.max": "max", "pids.peak": "3", "pids.events": "max 5"},
    "cpuacct": {"cpuacct.usage": "2500000000"},
}
V2_FILES = {
    "memory": {
        "memory.max": "max",
        "memory.high": "max",
        "memory.low": "0",
        "memory.current": "4096",
        "memory.peak": "8192",
        "memory.events": "high 3\noom 1\noom_kill 1",
        "memory.oom.group": "0",
        "memory.reclaim": "",
    },
    "cpu": {"cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.weight": "100"},
    "io": {"io.max": ""},
    "pids": {"pids.max": "max", "pids.peak": "4", "pids.events": "max 6"},
}


class FakeKept(KeptFile):
    """Reads and writes through the stand-in."""

    def __init__(self, files: FakeCgroups, path: str) -> None:
        self._files = files
        self._path = path

    def read(self) -> str | None:
        return self._files.read(self._path)

    def write(self, value: str) -> OSError | None:
        return self._files.write(self._path, value)

    def close(self) -> None:
        self._files.closed += 1


class FakeCgroups(CgroupFiles):
    """Makes control files where a directory is made, and refuses what it is told to refuse.

    ``refuse`` holds paths below which nothing can be made; ``busy`` those that cannot be removed;
    ``killed`` collects the signalled processes, which then leave every ``cgroup.procs``. ``shown``
    replaces what new files hold.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.refuse: set[Path] = set()
        self.unjoinable: set[Path] = set()
        self.busy: set[Path] = set()
        self.killed: list[int] = []
        self.slow_to_freeze = False
        self.opened = self.closed = 0
        self.shown: dict[str, str] = {}
        self.written: list[tuple[Path, str]] = []

    def make(self, directory: Path) -> None:
        """Create the directories; each gets the files that the kernel would show."""
        if any(directory.is_relative_to(place) for place in self.refuse):
            raise PermissionError(errno.EACCES, "Permission denied", str(directory))
        for path in reversed((directory, *directory.parents)):
            hierarchy = next(
                (h for h in self.layout.hierarchies if path.is_relative_to(h.mount)), None
            )
            if hierarchy is not None and not path.exists():
                path.mkdir()
                self.fill(path, hierarchy)

    def fill(self, path: Path, hierarchy: Hierarchy) -> None:
        """The control files of a new directory."""
        (path / "cgroup.procs").write_text("")
        if hierarchy.version == 1:
            for controller in hierarchy.controllers & V1_FILES.keys():
                for name, value in V1_FILES[controller].items():
                    (path / name).write_text(self.shown.get(name, value))
            return
        (path / "cgroup.controllers").write_text("")
        (path / "cgroup.subtree_control").write_text("")
        (path / "cgroup.events").write_text("populated 0\nfrozen 0")
        (path / "cgroup.kill").write_text("")
        (path / "cgroup.freeze").write_text("0")
        (path / "cgroup.stat").write_text("nr_descendants 0\nnr_dying_descendants 2")
        (path / "memory.pressure").write_text("some avg10=0.00 total=1500000\nfull total=500000")
        (path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1")
        self.hand_down(path.parent)

    def hand_down(self, parent: Path) -> None:
        """Show in the children of a v2 directory what it hands down, as the kernel does at once."""
        handed = parent / "cgroup.subtree_control"
        for controllers in parent.glob("*/cgroup.controllers") if handed.exists() else ():
            for name in set(handed.read_text().split()) - set(controllers.read_text().split()):
                controllers.write_text(f"{controllers.read_text()} {name}".strip())
                for file, value in V2_FILES[name].items():
                    (controllers.parent / file).write_text(value)

    def keep(self, path: str) -> FakeKept | None:
        """A file that is looked at often."""
        if not Path(path).exists():
            return None
        self.opened += 1
        return FakeKept(self, path)

    def write(self, path: Path | str, value: str) -> OSError | None:
        """Write and remember; subtree_control adds up as the kernel's does."""
        path = Path(path)
        self.written.append((path, value))
        if path.name == "cgroup.subtree_control" and path.exists():
            path.write_text(f"{path.read_text()} {value.removeprefix('+')}".strip())
            self.hand_down(path.parent)
            return None
        if not path.exists():
            return FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        path.write_text(value)
        if path.name == "cgroup.freeze" and not self.slow_to_freeze:
            (path.parent / "cgroup.events").write_text(f"populated 0\nfrozen {value}")
        return None

    def can_join(self, directory: Path) -> OSError | None:
        """Joins everywhere but below ``unjoinable``."""
        if any(directory.is_relative_to(place) for place in self.unjoinable):
            return PermissionError(errno.EPERM, "cannot join")
        return None

    def kill(self, pids: list[int]) -> None:
        """Forget the processes."""
        self.killed += pids
        for hierarchy in self.layout.hierarchies:
            for procs in hierarchy.mount.rglob("cgroup.procs"):
                left = [pid for pid in procs.read_text().split() if int(pid) not in pids]
                procs.write_text("\n".join(left))

    def remove_one(self, directory: Path) -> bool:
        """As rmdir: refuses a directory with children or processes."""
        if not directory.exists():
            return True
        children = any(path.is_dir() for path in directory.iterdir())
        if directory in self.busy or children or (directory / "cgroup.procs").read_text().strip():
            return False
        shutil.rmtree(directory)
        return True


def fake_machine(place: Path, kind: str) -> FakeCgroups:
    """A machine of the given layout, with the mount points of its hierarchies made."""
    v1 = [("cpu", "cpuacct"), ("memory",), ("pids",), ("name=systemd",)]
    found: list[Hierarchy] = []
    if kind in ("v1", "hybrid"):
        for names in v1:
            mount = place / ",".join(names)
            found.append(Hierarchy(1, mount, mount / "own", frozenset(names)))
    if kind in ("v2", "hybrid"):
        mount = place / "unified"
        found.append(Hierarchy(2, mount, mount / "slice" / "own"))
    files = FakeCgroups(Layout(tuple(found)))
    for hierarchy in found:
        hierarchy.mount.mkdir()
        files.fill(hierarchy.mount, hierarchy)
        if hierarchy.version == 2 and kind == "v2":
            (hierarchy.mount / "cgroup.controllers").write_text("cpuset cpu io memory pids")
        files.make(hierarchy.own)
    return files
