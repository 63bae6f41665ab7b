"""Sensor events from the kernel: typed tracepoints and cgroup hooks into one ring buffer."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentrt.ebpf import BpfLink, BpfObject, RingBuffer
from agentrt.errors import BackendUnavailable
from agentrt.resources.sensors import KINDS, SensorEvent, SensorKind, SensorStatistics, Sink
from agentrt.resources.watch import Watcher

__all__ = ["BpfSensor", "Burst", "unpack_event"]

RECORD = struct.Struct("=Q8QQIIIi64s")
ADDRESS = struct.Struct("=HHI16s")
SETTINGS = struct.Struct("=QQQQ")
KEY = struct.Struct("=Q")
ZERO = struct.pack("=I", 0)

TRACING = (
    "on_fork",
    "on_exec",
    "on_exit",
    "on_move",
    "on_oom",
    "on_reclaim_begin",
    "on_reclaim_end",
    "on_page",
)
HOOKS = ("see_connect4", "see_connect6", "see_sendmsg4", "see_sendmsg6")
OOM = "on_oom"
"""Before Linux 6.9 the tracepoint carries a number in place of the task: it then does not load."""

PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


@dataclass(frozen=True, slots=True)
class Burst:
    """Report a burst when one cgroup touches ``size`` bytes of new memory within ``seconds``.

    It is seen after between one and two times ``size``.
    """

    size: int = 32 * 1024 * 1024
    seconds: float = 0.25


def unpack_event(record: bytes) -> SensorEvent:
    """The event of one record of the ring buffer (``struct event`` of ``ebpf/events.h``)."""
    time, *rest = RECORD.unpack_from(record)
    ids, (value, kind, pid, parent, status, text) = rest[:8], rest[8:]
    lineage = tuple(i for i in ids if i)
    name: SensorKind = KINDS[kind - 1]
    return SensorEvent(
        name,
        time / 1e9,
        lineage[0],
        lineage,
        pid,
        parent=parent,
        status=status if name == "exit" else None,
        size=value if name == "burst" else 0,
        seconds=value / 1e9 if name == "reclaim" else 0.0,
        previous=value if name == "move" else 0,
        text=_address(text) if name == "connect" else _string(text),
        denied=name == "connect" and status != 0,
    )


def _string(text: bytes) -> str:
    return text.partition(b"\0")[0].decode(errors="replace")


def _address(text: bytes) -> str:
    family, port, protocol, raw = ADDRESS.unpack_from(text)
    name = PROTOCOLS.get(protocol, f"protocol {protocol}")
    if family == socket.AF_INET:
        host = socket.inet_ntop(socket.AF_INET, raw[:4])
    else:
        host = f"[{socket.inet_ntop(socket.AF_INET6, raw)}]"
    return f"{name} {host}:{socket.ntohs(port)}"


class BpfSensor:
    """Every process in and below the watched roots, as it happens.

    With ``lazy`` bytes, forks, execs, exits, moves and connects may lie unread until so much of
    them has come together, something urgent comes, or ``drain`` is called.

    Raises:
        BackendUnavailable: the programs do not load or attach here.
    """

    backend: Literal["bpf", "poll"] = "bpf"

    def __init__(
        self, watcher: Watcher, sink: Sink, burst: Burst | None = None, *, lazy: int = 0
    ) -> None:
        self.reason = ""
        self._watcher, self._sink = watcher, sink
        self._burst = burst or Burst()
        self._lazy = lazy
        self._reading = threading.Lock()
        self._roots: dict[int, tuple[BpfLink, ...]] = {}
        self._generation = 0
        self._events = 0
        self._lock = threading.Lock()
        self._object, self.unseen = _load()
        try:
            self._ring = RingBuffer(self._object.maps["events"], self._receive)
            self._publish()
            for name in TRACING:
                if name in self._object.programs:
                    self._object.attach(name)
        except (BackendUnavailable, OSError):
            self._object.close()
            raise
        watcher.add(self._ring.fd, select.EPOLLIN, self.drain)

    def shared_maps(self) -> dict[str, int]:
        """Maps, by name, that another object reuses to report into the same ring buffer."""
        return {name: self._object.maps[name].fd for name in ("events", "lost", "roots")}

    def add_root(self, root: Path) -> None:
        """Watch ``root`` and below (see ``Sensor``)."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            root_id = os.fstat(fd).st_ino
            with self._lock:
                if root_id in self._roots:
                    return
                links = tuple(self._object.attach(hook, cgroup=fd) for hook in HOOKS)
                self._roots[root_id] = links
                self._object.maps["roots"].set(KEY.pack(root_id), struct.pack("=I", 1))
                self._publish()
        finally:
            os.close(fd)

    def remove_root(self, root_id: int) -> None:
        """Stop watching the root (see ``Sensor``)."""
        with self._lock:
            links = self._roots.pop(root_id, ())
            self._object.maps["roots"].delete(KEY.pack(root_id))
            self._publish()
            for link in links:
                self._object.detach(link)

    def _publish(self) -> None:
        # A new generation makes every cgroup's remembered root stale.
        self._generation += 1
        nanoseconds = round(self._burst.seconds * 1e9)
        values = SETTINGS.pack(self._burst.size, nanoseconds, self._generation, self._lazy)
        self._object.maps["settings"].set(ZERO, values)

    def drain(self) -> None:
        """Deliver what has come so far, on this thread (see ``Sensor``)."""
        with self._reading:
            self._ring.consume()

    def _receive(self, record: bytes) -> None:
        self._events += 1
        self._sink(unpack_event(record))

    def statistics(self) -> SensorStatistics:
        """What was delivered and what was lost."""
        lost = self._object.maps["lost"].get(ZERO) if self._object.maps else None
        return SensorStatistics(self._events, KEY.unpack(lost)[0] if lost else 0)

    def close(self) -> None:
        """Detach everything; idempotent."""
        self._watcher.remove(self._ring.fd)
        with self._reading:
            self._ring.close()
        self._object.close()
        self._roots.clear()


def _load() -> tuple[BpfObject, tuple[SensorKind, ...]]:
    """The object with every program that loads; the kinds that it then cannot report."""
    try:
        return BpfObject("sensors"), ()
    except BackendUnavailable:
        with contextlib.suppress(BackendUnavailable):
            return BpfObject("sensors", skip=frozenset({OOM})), ("oom",)
        raise
