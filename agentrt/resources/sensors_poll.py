"""The sensors' interface without BPF: cgroup files and /proc, read every so often, and it says so.

What starts and ends between two rounds is not seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agentrt.resources.cgroup import Layout, flat_counters, read_layout
from agentrt.resources.sensors import SensorEvent, SensorKind, SensorStatistics, Sink
from agentrt.resources.watch import Clock, Watcher

__all__ = ["PollSensor"]

PAGE = os.sysconf("SC_PAGE_SIZE")
BURST = 32 * 1024 * 1024


@dataclass(slots=True)
class _Seen:
    """What one round found: process -> lineage, cgroup id -> resident bytes and OOM kills."""

    places: dict[int, tuple[int, ...]] = field(default_factory=dict)
    resident: Counter[int] = field(default_factory=Counter)
    oom_kills: dict[int, int] = field(default_factory=dict)
    lineages: dict[int, tuple[int, ...]] = field(default_factory=dict)


class PollSensor:
    """Compares two readings of the watched trees; a sensor without any rights or BPF.

    Args:
        reason: why nothing better is used.
        period: seconds between two readings.
        burst: bytes of growth within one period that are reported.
    """

    backend: Literal["bpf", "poll"] = "poll"
    unseen: tuple[SensorKind, ...] = ("exec", "reclaim", "connect")

    def __init__(
        self,
        watcher: Watcher,
        sink: Sink,
        *,
        reason: str,
        period: float = 0.1,
        burst: int = BURST,
        proc: Path = Path("/proc"),
        layout: Layout | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.reason = reason
        self._sink, self._burst, self._proc, self._clock = sink, burst, proc, clock
        self._layout = layout if layout is not None else read_layout()
        self._roots: dict[int, Path] = {}
        self._last = _Seen()
        self._events = 0
        self._lock = threading.Lock()
        self._watcher = watcher
        self._timer = watcher.every(period, self.poll)

    def add_root(self, root: Path) -> None:
        """Watch ``root`` and below (see ``Sensor``)."""
        root_id = root.stat().st_ino
        with self._lock:
            self._roots[root_id] = root

    def remove_root(self, root_id: int) -> None:
        """Stop watching the root (see ``Sensor``)."""
        with self._lock:
            self._roots.pop(root_id, None)

    def drain(self) -> None:
        """Nothing waits: what a look finds is told at once."""

    def statistics(self) -> SensorStatistics:
        """What was delivered; nothing counts as lost, since what was missed is not known."""
        return SensorStatistics(self._events, 0)

    def close(self) -> None:
        """Stop reading; idempotent."""
        self._watcher.cancel(self._timer)

    def poll(self) -> None:
        """Read once and report what differs from the last reading."""
        with self._lock:
            now = self._read()
            last, self._last = self._last, now
        for event in self._differences(last, now):
            self._events += 1
            self._sink(event)

    def _read(self) -> _Seen:
        seen = _Seen()
        for root in list(self._roots.values()):
            self._read_tree(root, (), seen)
        return seen

    def _read_tree(self, directory: Path, above: tuple[int, ...], seen: _Seen) -> None:
        try:
            own = directory.stat().st_ino
            lineage = (own, *above)
            pids = [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
            children = [entry.path for entry in os.scandir(directory) if entry.is_dir()]
        except OSError:
            return  # removed meanwhile
        seen.lineages[own] = lineage
        for pid in pids:
            seen.places[pid] = lineage
            seen.resident[own] += self._resident(pid)
        kills = self._oom_kills(directory)
        if kills is not None:
            seen.oom_kills[own] = kills
        for child in children:
            self._read_tree(Path(child), lineage, seen)

    def _resident(self, pid: int) -> int:
        try:
            return int((self._proc / str(pid) / "statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0

    def _oom_kills(self, directory: Path) -> int | None:
        for file in self._oom_files(directory):
            try:
                return flat_counters(file.read_text()).get("oom_kill")
            except OSError:
                continue
        return None

    def _oom_files(self, directory: Path) -> Iterator[Path]:
        yield directory / "memory.events.local"
        v2, v1 = self._layout.v2, self._layout.v1("memory")
        if v1 is not None and v2 is not None and directory.is_relative_to(v2.mount):
            yield v1.mount / directory.relative_to(v2.mount) / "memory.oom_control"

    def _differences(self, last: _Seen, now: _Seen) -> Iterator[SensorEvent]:
        time = self._clock()
        for pid, lineage in now.places.items():
            before = last.places.get(pid)
            if before is None:
                yield SensorEvent("fork", time, lineage[0], lineage, pid, text=self._name(pid))
            elif before[0] != lineage[0]:
                yield SensorEvent("move", time, lineage[0], lineage, pid, previous=before[0])
        for pid, lineage in last.places.items():
            if pid not in now.places:
                yield SensorEvent("exit", time, lineage[0], lineage, pid)
        for own, lineage in now.lineages.items():
            grown = now.resident[own] - last.resident[own]
            if own in last.lineages and grown >= self._burst:
                yield SensorEvent("burst", time, own, lineage, 0, size=grown)
            for _ in range(now.oom_kills.get(own, 0) - last.oom_kills.get(own, 0)):
                yield SensorEvent("oom", time, own, lineage, 0)

    def _name(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "comm").read_text().strip()
        except OSError:
            return ""
