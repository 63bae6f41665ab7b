"""What the kernel sees of tool calls, as one stream of events: from BPF, or polled and said so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from agentrt.errors import BackendUnavailable
from agentrt.resources.watch import Watcher

__all__ = [
    "KINDS",
    "Sensor",
    "SensorEvent",
    "SensorKind",
    "SensorStatistics",
    "Sink",
    "open_sensors",
]

SensorKind: TypeAlias = Literal[
    "exec", "exit", "fork", "oom", "reclaim", "move", "burst", "connect"
]

KINDS: tuple[SensorKind, ...] = (
    "exec",
    "exit",
    "fork",
    "oom",
    "reclaim",
    "move",
    "burst",
    "connect",
)


@dataclass(frozen=True, slots=True)
class SensorEvent:
    """Something that happened in a watched cgroup.

    ``cgroup_id`` is the inode number of the process's directory in the v2 tree
    (``path.stat().st_ino``). ``lineage`` goes from there up to the watched root that it lies
    below, both included, so that an event of a nested cgroup finds its tool call.
    """

    kind: SensorKind
    time: float
    """Seconds, CLOCK_MONOTONIC, taken in the kernel where BPF reports."""
    cgroup_id: int
    lineage: tuple[int, ...]
    pid: int
    parent: int = 0
    """fork: the process that forked."""
    status: int | None = None
    """exit: the wait status (as ``os.waitstatus_to_exitcode`` takes); ``None`` where unknown."""
    size: int = 0
    """burst: bytes of user memory first touched within the window."""
    seconds: float = 0.0
    """reclaim: time spent in direct reclaim since the last report; 0 when one has just begun."""
    previous: int = 0
    """move: the cgroup id that the process was in; 0 where unknown."""
    text: str = ""
    """exec: the file; connect: ``tcp 192.0.2.1:443`` or ``udp [2001:db8::1]:53``; else the name."""
    denied: bool = False
    """connect: the egress policy refused it."""


Sink: TypeAlias = Callable[[SensorEvent], None]
"""Receives events on the watcher's thread; it must return quickly and may be called often."""


@dataclass(frozen=True, slots=True)
class SensorStatistics:
    """Counts since opening. ``lost`` events found the ring buffer full and were never delivered."""

    events: int = 0
    lost: int = 0


class Sensor(Protocol):
    """A source of sensor events over some cgroup roots."""

    backend: Literal["bpf", "poll"]
    reason: str
    """Why it is this backend, with the remedy where it is not ``bpf``."""
    unseen: tuple[SensorKind, ...]
    """The kinds that this backend cannot report."""

    def add_root(self, root: Path) -> None:
        """Watch every process in the v2 directory ``root`` and below it.

        Raises:
            OSError: the directory is not there.
        """
        ...

    def remove_root(self, root_id: int) -> None:
        """Stop watching the root with this cgroup id (its directory may be gone)."""
        ...

    def drain(self) -> None:
        """Deliver what has come so far before returning, where events wait for that."""
        ...

    def statistics(self) -> SensorStatistics:
        """What was delivered and what was lost."""
        ...

    def close(self) -> None:
        """Detach everything; idempotent. On return the sink is not called again."""
        ...


def open_sensors(
    watcher: Watcher,
    sink: Sink,
    roots: Sequence[Path] = (),
    *,
    backend: Literal["auto", "bpf", "poll"] = "auto",
    poll_seconds: float = 0.1,
    lazy: int = 0,
) -> Sensor:
    """Open the best sensor that works here; ``backend`` and ``reason`` of it say which and why.
    ``lazy``: see ``BpfSensor``.

    Raises:
        BackendUnavailable: ``bpf`` was asked for and does not load here.
        OSError: one of the roots is not there.
    """
    from agentrt.resources.sensors_poll import PollSensor

    reason = "polling was asked for"
    if backend != "poll":
        from agentrt.resources.sensors_bpf import BpfSensor

        try:
            sensor: Sensor = BpfSensor(watcher, sink, lazy=lazy)
        except BackendUnavailable as error:
            if backend == "bpf":
                raise
            reason = str(error)
        else:
            return _with_roots(sensor, roots)
    return _with_roots(PollSensor(watcher, sink, reason=reason, period=poll_seconds), roots)


def _with_roots(sensor: Sensor, roots: Sequence[Path]) -> Sensor:
    try:
        for root in roots:
            sensor.add_root(root)
    except OSError:
        sensor.close()
        raise
    return sensor
