"""What can be done to a cgroup that lives: limits changed, frozen, thawed, reclaimed, measured.

One interface over v2, hybrid (v1 controllers, v2 tree) and v1. Every verb returns an empty string,
or why it is not in force here: a v1 host has no ``memory.high`` and no ``memory.reclaim``, and a
host without a v2 tree cannot freeze.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.layout import Hierarchy
from agentrt.resources.cgroup.limits import CPU_PERIOD, CPU_QUOTA_FLOOR, flat_counters

__all__ = ["Control", "Leaf", "block_device"]

NO_HIGH = "memory.high exists on cgroup v2 only"
NO_RECLAIM = "memory.reclaim exists on cgroup v2 only; v1's force_empty would drop everything"
NO_FREEZER = "there is no cgroup v2 tree to freeze in"
NO_GROUP_OOM = "memory.oom.group exists on cgroup v2 only: the kernel kills one process"
NO_LOW = "memory.low exists on cgroup v2 only"


@dataclass(frozen=True, slots=True)
class Leaf:
    """The directory of a group in one hierarchy."""

    hierarchy: Hierarchy
    path: Path

    def file(self, name: str) -> str:
        """One of its control files; text, as joining paths costs more than what the kernel does."""
        return f"{self.path}/{name}"


class Control:
    """The verbs of one group. Thread-safe: it remembers only which directory has a controller."""

    def __init__(self, leaves: Sequence[Leaf], files: CgroupFiles) -> None:
        self._leaves = tuple(leaves)
        self._files = files
        self._v2 = next((leaf for leaf in self._leaves if leaf.hierarchy.version == 2), None)
        self._carriers: dict[str, Leaf] = {}

    def carrier(self, controller: str) -> Leaf | None:
        """The directory whose files govern ``controller``: v1 where that holds it, else v2."""
        known = self._carriers.get(controller)
        if known is None and (found := self._find_carrier(controller)) is not None:
            self._carriers[controller] = known = found
        return known

    def _find_carrier(self, controller: str) -> Leaf | None:
        for leaf in self._leaves:
            if controller in leaf.hierarchy.controllers:
                return leaf
        if self._v2 is None:
            return None
        offered = self._files.read(self._v2.file("cgroup.controllers")) or ""
        return self._v2 if controller in offered.split() else None

    @property
    def v2(self) -> Path | None:
        """Its directory in the v2 tree, if there is one."""
        return None if self._v2 is None else self._v2.path

    # --- memory ---

    def memory(self) -> int | None:
        """Bytes in use now."""
        text = self._read("memory", "memory.current", "memory.usage_in_bytes")
        return int(text) if text.isdigit() else None

    def memory_file(self) -> Path | None:
        """The file that ``memory`` reads: whoever reads it often keeps it open."""
        leaf = self.carrier("memory")
        if leaf is None:
            return None
        v2 = leaf.hierarchy.version == 2
        return leaf.path / ("memory.current" if v2 else "memory.usage_in_bytes")

    def memory_events(self) -> Mapping[str, int]:
        """``high``, ``max``, ``oom``, ``oom_kill`` so far; on v1 only ``max`` and ``oom_kill``."""
        leaf = self.carrier("memory")
        if leaf is None:
            return {}
        if leaf.hierarchy.version == 2:
            return flat_counters(self._files.read(leaf.file("memory.events")))
        out = dict(flat_counters(self._files.read(leaf.file("memory.oom_control"))))
        failures = (self._files.read(leaf.file("memory.failcnt")) or "").strip()
        if failures.isdigit():
            out["max"] = int(failures)
        return out

    def stalled(self) -> float | None:
        """Seconds in which some of its tasks waited for memory (PSI ``some``)."""
        return self._pressure("memory")

    def set_max(self, size: int | None) -> str:
        """Set the hard limit; ``None`` lifts it."""
        leaf = self.carrier("memory")
        if leaf is None:
            return "no memory controller that agentrt may use"
        if leaf.hierarchy.version == 2:
            return self._write(leaf, "memory.max", "max" if size is None else str(size))
        value = "-1" if size is None else str(size)
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        # The limit with swap may never be below the one without: widen the outer one first.
        said = [self._write(leaf, name, value) for name in (*names[::-1], *names)]
        return said[2]

    def set_high(self, size: int | None) -> str:
        """Set the throttle limit; ``None`` lifts it."""
        return self._v2_only("memory", "memory.high", "max" if size is None else str(size), NO_HIGH)

    def set_low(self, size: int) -> str:
        """Protect ``size`` bytes from reclaim as long as others have some."""
        return self._v2_only("memory", "memory.low", str(size), NO_LOW)

    def set_oom_group(self, whole: bool) -> str:
        """Whether an OOM kill takes the whole group or one process."""
        return self._v2_only("memory", "memory.oom.group", "1" if whole else "0", NO_GROUP_OOM)

    def reclaim(self, size: int) -> str:
        """Ask the kernel to take back ``size`` bytes; blocks until it has tried.

        That less could be taken is no failure.
        """
        said = self._v2_only("memory", "memory.reclaim", str(size), NO_RECLAIM)
        return "" if said.endswith("Resource temporarily unavailable") else said

    # --- CPU, processes, I/O ---

    def set_weight(self, weight: int) -> str:
        """Set its share of contended CPU; 100 is usual, 1 to 10,000."""
        leaf = self.carrier("cpu")
        if leaf is None:
            return "no cpu controller that agentrt may use"
        if leaf.hierarchy.version == 2:
            return self._write(leaf, "cpu.weight", str(weight))
        return self._write(leaf, "cpu.shares", str(max(2, weight * 1024 // 100)))

    def set_cpu(self, cores: float | None, burst: float | None = None) -> str:
        """Limit it to ``cores``; what it leaves unused it may spend later, up to ``burst`` cores
        for one period of 100 ms."""
        leaf = self.carrier("cpu")
        if leaf is None:
            return "no cpu controller that agentrt may use"
        quota = None if cores is None else max(CPU_QUOTA_FLOOR, round(cores * CPU_PERIOD))
        spare = 0 if burst is None or quota is None else min(quota, round(burst * CPU_PERIOD))
        if leaf.hierarchy.version == 2:
            said = self._write(leaf, "cpu.max", f"{'max' if quota is None else quota} {CPU_PERIOD}")
            return said or self._write(leaf, "cpu.max.burst", str(spare))
        value = "-1" if quota is None else str(quota)
        said = self._write(leaf, "cpu.cfs_quota_us", value)
        if said:  # a burst above the new quota refuses it
            self._write(leaf, "cpu.cfs_burst_us", "0")
            said = self._write(leaf, "cpu.cfs_quota_us", value)
        refused = "" if said else self._write(leaf, "cpu.cfs_burst_us", str(spare))
        return said or (refused if spare else "")  # an old kernel without bursts has none to reset

    def set_pids(self, most: int | None) -> str:
        """Limit processes and threads."""
        leaf = self.carrier("pids")
        if leaf is None:
            return "no pids controller that agentrt may use"
        return self._write(leaf, "pids.max", "max" if most is None else str(most))

    def set_io(self, device: str, size: int) -> str:
        """Limit reads and writes of ``device`` (``major:minor``) to ``size`` bytes/s each."""
        leaf = self.carrier("io") or self.carrier("blkio")
        if leaf is None:
            return "no io controller that agentrt may use"
        if leaf.hierarchy.version == 2:
            return self._write(leaf, "io.max", f"{device} rbps={size} wbps={size}")
        said = self._write(leaf, "blkio.throttle.read_bps_device", f"{device} {size}")
        return said or self._write(leaf, "blkio.throttle.write_bps_device", f"{device} {size}")

    def cpu_seconds(self) -> float | None:
        """CPU time used so far; the v2 tree counts it also where the controller sits on v1."""
        if self.v2 is None:
            return None
        spent = flat_counters(self._files.read(f"{self.v2}/cpu.stat")).get("usage_usec")
        return None if spent is None else spent / 1e6

    def cpu_stalled(self) -> float | None:
        """Seconds in which its tasks waited for a CPU that others had (PSI ``full``).

        The kernel counts time held back by the group's own limit as well; that is left out.
        """
        waited = self._pressure("cpu", "full")
        return None if waited is None else max(0.0, waited - (self.cpu_throttled() or 0.0))

    def cpu_throttled(self) -> float | None:
        """Seconds in which it was held back by its CPU limit."""
        leaf = self.carrier("cpu")
        if leaf is None:
            return None
        counters = flat_counters(self._files.read(leaf.file("cpu.stat")))
        if leaf.hierarchy.version == 2:
            value = counters.get("throttled_usec")
            return None if value is None else value / 1e6
        value = counters.get("throttled_time")
        return None if value is None else value / 1e9

    # --- freezing ---

    def freeze(self, stop: bool) -> str:
        """Ask for it to be frozen or thawed; the kernel needs some milliseconds to stop it."""
        if self.v2 is None:
            return NO_FREEZER
        error = self._files.write(f"{self.v2}/cgroup.freeze", "1" if stop else "0")
        return "" if error is None else f"cgroup.freeze: {error.strerror or error}"

    def frozen(self) -> bool:
        """Whether every task in it stands still."""
        if self.v2 is None:
            return False
        return flat_counters(self._files.read(f"{self.v2}/cgroup.events")).get("frozen") == 1

    def wait_frozen(self, seconds: float) -> bool:
        """Block until it is frozen, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.frozen():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.0005)
        return True

    def pressure_path(self, resource: Literal["memory", "cpu", "io"]) -> Path | None:
        """Its pressure file, on v2 and hybrid hosts whose kernel counts pressure."""
        if self.v2 is None:
            return None
        path = self.v2 / f"{resource}.pressure"
        return path if self._files.read(path) is not None else None

    def dying(self) -> int | None:
        """Removed cgroups below it that the kernel still keeps for their memory."""
        if self.v2 is None:
            return None
        return flat_counters(self._files.read(f"{self.v2}/cgroup.stat")).get("nr_dying_descendants")

    # --- parts ---

    def _pressure(
        self, resource: Literal["memory", "cpu", "io"], kind: Literal["some", "full"] = "some"
    ) -> float | None:
        text = None if self.v2 is None else self._files.read(f"{self.v2}/{resource}.pressure")
        for line in (text or "").splitlines():
            if line.startswith(kind) and "total=" in line:
                return int(line.rpartition("total=")[2]) / 1e6
        return None

    def _read(self, controller: str, on_v2: str, on_v1: str) -> str:
        leaf = self.carrier(controller)
        if leaf is None:
            return ""
        name = on_v2 if leaf.hierarchy.version == 2 else on_v1
        return (self._files.read(leaf.file(name)) or "").strip()

    def _v2_only(self, controller: str, name: str, value: str, without: str) -> str:
        leaf = self.carrier(controller)
        if leaf is None or leaf.hierarchy.version != 2:
            return without
        return self._write(leaf, name, value)

    def _write(self, leaf: Leaf, name: str, value: str) -> str:
        error = self._files.write(leaf.file(name), value)
        return "" if error is None else f"{name}: {error.strerror or error}"


def block_device(path: Path, sys: Path = Path("/sys")) -> str | None:
    """The disk below ``path`` as ``major:minor``; ``None`` for a file system without one."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return None
    major, minor = os.major(number), os.minor(number)
    place = sys / "dev" / "block" / f"{major}:{minor}"
    if major == 0 or not place.exists():
        return None
    if not (place / "partition").exists():
        return f"{major}:{minor}"
    try:
        return (place.resolve().parent / "dev").read_text().strip()
    except OSError:
        return None
