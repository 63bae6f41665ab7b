"""Our sched_ext scheduler: tool calls by weight, cpu.max, boosted or held, in the kernel.

One per machine: attaching replaces the kernel's own scheduler for all ordinary tasks, and any fault
brings that one back. Needs Linux with sched_ext and its newer functions (tested on 7.3), libbpf 1.5
and root; ``agentrt doctor`` says what is there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

from agentrt.ebpf import SCX_MINIMUM, BpfObject, library
from agentrt.errors import BackendUnavailable

__all__ = [
    "AgentScheduler",
    "SchedulingClass",
    "SchedulingFlag",
    "SchedulingSettings",
    "SchedulingState",
    "SchedulingStatistics",
    "scheduling_state",
]

SCHED_EXT = Path("/sys/kernel/sched_ext")
NAME = "agentrt"
ZERO = struct.pack("=I", 0)
COUNTERS = ("queued", "direct", "throttled", "held", "pressed", "latency", "released")
WATCHDOG_SECONDS = 5.0
"""A task that does not run for so long makes the kernel eject the scheduler."""
LONGEST_HOLD = 2.0

NEWER_LIBBPF = (
    "Build libbpf 1.5 or newer and name it: AGENTRT_LIBBPF=/path/to/libbpf.so.1 "
    "(scripts/vm/fetch does so on Debian)."
)
OTHER_KERNEL = "Boot a kernel with CONFIG_SCHED_CLASS_EXT=y, on Debian linux-image from backports."


class SchedulingClass(IntEnum):
    """How the tasks of a cgroup are treated; ``HELD`` ones run only between bounded holds."""

    NORMAL = 0
    BOOSTED = 1
    HELD = 2


class SchedulingFlag(IntFlag):
    """What memory pressure means to a cgroup.

    A cgroup that ``YIELDS`` is held, in the kernel, when it grows while a ``PROTECTED`` one
    has to reclaim memory that both share.
    """

    NONE = 0
    PROTECTED = 1
    YIELDS = 2


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Times in seconds, sizes in bytes.

    ``hold`` is the first hold of a row; the second lasts half as long, later ones a quarter, and
    between two the cgroup runs for ``grace``. Pressure counts as over ``pressure`` after it was
    last seen; meanwhile a cgroup that yields may touch ``growth`` before it is held.
    """

    slice: float = 0.005
    hold: float = 0.5
    grace: float = 0.05
    pressure: float = 0.1
    growth: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 0 < self.hold <= LONGEST_HOLD:
            raise ValueError(f"a hold lasts up to {LONGEST_HOLD} s: past 5 s the kernel steps in")

    def packed(self, generation: int) -> bytes:
        """As ``struct settings`` of ``ebpf/sched_hold.h``."""
        times = (self.slice, self.hold, self.grace, self.pressure)
        return struct.pack("=IIQQQQQ", generation, 0, *(round(t * 1e9) for t in times), self.growth)


@dataclass(frozen=True, slots=True)
class SchedulingStatistics:
    """Counts since attaching.

    ``queued`` and ``direct`` tasks went to the shared queue or to an idle CPU; ``throttled`` were
    parked by cpu.max, ``held`` by class or memory pressure; ``pressed`` holds were caused by memory
    pressure; ``latency`` tasks preempted; ``released`` came back from being parked.
    """

    queued: int
    direct: int
    throttled: int
    held: int
    pressed: int
    latency: int
    released: int


@dataclass(frozen=True, slots=True)
class SchedulingState:
    """``enabled`` while a sched_ext scheduler runs; ``ops`` is its name. ``disabled``, or
    ``absent`` where the kernel has none."""

    state: str
    ops: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether our scheduler is the one that runs."""
        return self.state == "enabled" and self.ops.startswith(NAME)


def scheduling_state(root: Path = SCHED_EXT) -> SchedulingState:
    """What the kernel says about sched_ext now."""
    try:
        state = (root / "state").read_text().strip()
    except OSError:
        return SchedulingState("absent")
    try:
        return SchedulingState(state, (root / "root" / "ops").read_text().strip())
    except OSError:
        return SchedulingState(state)


class AgentScheduler:
    """The scheduler, attached from construction to ``close`` or until the kernel ejects it.

    Raises:
        BackendUnavailable: this kernel, libbpf or user cannot run it; the default scheduler stays.
    """

    def __init__(self, settings: SchedulingSettings | None = None) -> None:
        _check()
        self._settings = settings or SchedulingSettings()
        self._generation = 0
        self._object, self.scoped_pressure = _load()
        try:
            self._publish()
            tracing = "on_reclaim_within" if self.scoped_pressure else "on_reclaim_anywhere"
            self._object.attach_struct_ops("agent_sched")
            for program in (tracing, "on_page"):
                self._object.attach(program)
        except (BackendUnavailable, OSError):
            self._object.close()
            raise

    def set_class(
        self,
        cgroup_id: int,
        scheduling: SchedulingClass = SchedulingClass.NORMAL,
        flags: SchedulingFlag = SchedulingFlag.NONE,
    ) -> None:
        """Treat a cgroup and what lies below it so, from its next slice on.

        It must have the cpu controller. The entry goes when the cgroup goes.
        """
        value = struct.pack("=II", scheduling, flags)
        self._object.maps["policies"].set(struct.pack("=Q", cgroup_id), value)
        self._publish()

    def clear_class(self, cgroup_id: int) -> None:
        """Treat it like its parent again."""
        self._object.maps["policies"].delete(struct.pack("=Q", cgroup_id))
        self._publish()

    def add_latency_thread(self, thread_id: int) -> None:
        """Run this thread at once whenever it wakes, up to nine tenths of one CPU in all."""
        self._object.maps["threads"].set(struct.pack("=I", thread_id), struct.pack("=I", 1))
        self._publish()

    def remove_latency_thread(self, thread_id: int) -> None:
        """Make it an ordinary thread again; to be called before its number is reused."""
        self._object.maps["threads"].delete(struct.pack("=I", thread_id))
        self._publish()

    def _publish(self) -> None:
        self._generation += 1
        self._object.maps["settings"].set(ZERO, self._settings.packed(self._generation))

    def state(self) -> SchedulingState:
        """What runs now; not ours any more after a fault."""
        return scheduling_state()

    def ending(self) -> str:
        """Why the kernel ended it, such as a stalled task; empty while it runs."""
        raw = self._object.maps["endings"].get(ZERO) or b""
        kind, reason, message = struct.unpack("=I60s128s", raw)
        parts = (text.partition(b"\0")[0].decode(errors="replace") for text in (reason, message))
        return ": ".join(part for part in parts if part) if kind else ""

    def statistics(self) -> SchedulingStatistics:
        """Counts since attaching."""
        counters = self._object.maps["counters"]
        raw = [counters.get(struct.pack("=I", index)) for index in range(len(COUNTERS))]
        return SchedulingStatistics(*(struct.unpack("=Q", value or bytes(8))[0] for value in raw))

    def close(self) -> None:
        """Give the machine back to the kernel's own scheduler; idempotent."""
        self._object.close()


def _check() -> None:
    if scheduling_state().state == "absent":
        raise BackendUnavailable("This kernel has no sched_ext.", remedy=OTHER_KERNEL)
    found = library().version
    if found < SCX_MINIMUM:
        version = ".".join(map(str, found))
        raise BackendUnavailable(
            f"libbpf {version} cannot load a scheduler: it needs 1.5.", remedy=NEWER_LIBBPF
        )
    running = scheduling_state()
    if running.state == "enabled":
        raise BackendUnavailable(
            f"Another sched_ext scheduler runs: {running.ops}.", remedy="Stop it first."
        )


def _load() -> tuple[BpfObject, bool]:
    """The object, and whether pressure is known per cgroup."""
    try:
        return BpfObject("agent_sched", skip=frozenset({"on_reclaim_anywhere"})), True
    except BackendUnavailable:
        return BpfObject("agent_sched", skip=frozenset({"on_reclaim_within"})), False
