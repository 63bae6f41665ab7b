"""The kernel's help for one governor: sensor events per tool call, and calls without network.

Where BPF does not load, nothing here polls (the driver looks at the cgroups anyway) and ``notes``
says what is missing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentrt.errors import BackendUnavailable
from agentrt.resources.egress import Egress
from agentrt.resources.sensors import Sensor, SensorEvent, SensorStatistics, open_sensors
from agentrt.resources.watch import Watcher

__all__ = ["CallEvents", "KernelSide"]

ADDRESSES_KEPT = 16
LAZY = 256 << 10
"""Bytes of ordinary events, some 1,500, that may wait for the end of a call."""
URGENT = frozenset({"burst", "reclaim", "oom"})


@dataclass(slots=True)
class CallEvents:
    """What the kernel saw of one tool call, its nested cgroups included."""

    counts: Counter[str] = field(default_factory=Counter)
    """Events by kind."""
    connects: list[str] = field(default_factory=list)
    """The first addresses that it connected or sent to; refused ones begin with ``refused``."""

    def add(self, event: SensorEvent) -> None:
        """Count one event."""
        self.counts[event.kind] += 1
        if event.kind == "connect" and len(self.connects) < ADDRESSES_KEPT:
            self.connects.append(f"refused {event.text}" if event.denied else event.text)


class KernelSide:
    """Sensors and egress over the directory of all tool calls of a run.

    Args:
        root: its directory in the v2 tree.
        urgent: called on the watcher's thread when a call's memory grows fast, is being reclaimed,
            or a process was killed for lack of it.
    """

    def __init__(self, watcher: Watcher, root: Path, urgent: Callable[[], None]) -> None:
        self.notes: tuple[str, ...] = ()
        self._urgent = urgent
        self._calls: dict[int, CallEvents] = {}
        self._lock = threading.Lock()
        self._sensor: Sensor | None = None
        self._egress: Egress | None = None
        try:
            self._sensor = open_sensors(watcher, self._receive, [root], backend="bpf", lazy=LAZY)
            self._egress = Egress(self._sensor)
        except (BackendUnavailable, OSError) as error:
            self.notes = (f"sensors: {error}",)

    def _receive(self, event: SensorEvent) -> None:
        with self._lock:
            for cgroup_id in event.lineage:
                if (call := self._calls.get(cgroup_id)) is not None:
                    call.add(event)
                    break
        if event.kind in URGENT:
            self._urgent()

    def begin(self, cgroup_id: int) -> None:
        """Collect the events of the call with this cgroup until ``end``."""
        with self._lock:
            self._calls[cgroup_id] = CallEvents()

    def end(self, cgroup_id: int) -> CallEvents:
        """What was seen of the call; its egress policy goes as well."""
        if self._egress is not None:
            self._egress.lift(cgroup_id)
        if self._sensor is not None:
            self._sensor.drain()
        with self._lock:
            return self._calls.pop(cgroup_id, CallEvents())

    def take_network(self, directory: Path) -> str:
        """Let a call reach nothing; returns an empty string, or why that is not in force."""
        if self._egress is None:
            return "; ".join(self.notes)
        try:
            self._egress.restrict(directory)
        except (BackendUnavailable, OSError) as error:
            return str(error)
        return ""

    def statistics(self) -> SensorStatistics:
        """Events delivered and lost; zeros without sensors."""
        return self._sensor.statistics() if self._sensor is not None else SensorStatistics()

    def close(self) -> None:
        """Detach everything; idempotent."""
        if self._egress is not None:
            self._egress.close()
        if self._sensor is not None:
            self._sensor.close()
            self._sensor = None
