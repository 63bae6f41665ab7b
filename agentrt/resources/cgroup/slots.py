"""Cgroups that serve one tool call after another: making and removing one costs more than using it.

A slot is the cgroup of a call of one place (a program, a sandbox). It is lent to one call at a time
and taken back only from an ordinary end: empty, with next to no memory left in it, and after
nothing that the next call could be blamed for (a kill, a freeze, an OOM kill, CPU held back, a
network policy). Any other slot is removed with its call. Only where the memory controller is on v1:
v2 cannot reset its peaks for good, and makes one directory where v1 makes three.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from agentrt.resources.cgroup.control import Leaf
from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.group import ToolGroup
from agentrt.resources.cgroup.limits import Counters, LimitsLike
from agentrt.resources.cgroup.slot import PEAK, Lease, Slot

__all__ = ["LEFT_MOST", "LentGroup", "Slots"]

LEFT_MOST = 768 << 10
"""Bytes that may be left in a slot: the stock of each CPU and some kernel memory, rather than page
cache. So much of the next call's peak may be an earlier one's of the same program."""
USUAL_WEIGHT = 100


class LentGroup(ToolGroup):
    """A slot while one call has it: a ``ToolGroup`` that ``remove`` gives back where it can."""

    def __init__(self, slot: Slot, take_back: Callable[[LentGroup], bool]) -> None:
        self.slot = slot
        self._lease = Lease(slot)
        super().__init__(slot.leaves, self._lease)
        self._take_back = take_back
        self._offered = False
        self._gone = False
        self._spoiled = False
        self._empty = False
        self._counted: Counters | None = None
        self._spent_before = (self._cpu_seconds() or 0.0) if slot.uses else 0.0

    @property
    def procs(self) -> tuple[Path, ...]:
        """The ``cgroup.procs`` files that a process writes ``0`` into to be in the group."""
        return self.slot.procs

    def prepare(self, limits: LimitsLike) -> bool:
        """Lift what an earlier call had and this one does not ask for; whether that worked."""
        if not self.slot.uses:
            return True
        control = self.control
        lifts: list[tuple[str, Callable[[None], str]]] = [
            ("memory", control.set_max),
            ("cpu", control.set_cpu),
            ("pids", control.set_pids),
        ]
        for name, lift in lifts:
            if getattr(limits, name) is None and control.carrier(name) and lift(None):
                return False
        if control.carrier("cpu") and control.set_weight(USUAL_WEIGHT):
            return False
        carrier = control.carrier("memory")
        return carrier is None or self.slot.write(carrier.file(PEAK), "0") is None

    def apply(self, limits: LimitsLike) -> dict[str, str]:
        """Set the limits; return, by limit name, why the ones that are not in force are not."""
        if not self.slot.uses:
            return super().apply(limits)
        control, said = self.control, dict[str, str]()
        if limits.memory is not None:
            said["memory"] = control.set_max(limits.memory)
        if limits.cpu is not None:
            said["cpu"] = control.set_cpu(limits.cpu)
        if limits.pids is not None:
            said["pids"] = control.set_pids(limits.pids)
        return {name: why for name, why in said.items() if why}

    def counters(self) -> Counters:
        """What this call's part of it was."""
        found = super().counters()
        if found.cpu_seconds is not None:
            spent = max(0.0, found.cpu_seconds - self._spent_before)
            found = replace(found, cpu_seconds=spent)
        self._counted = found
        return found

    def populated(self) -> bool:
        """Whether a live process is in the group or below it."""
        self._empty = not super().populated()
        return not self._empty

    def kill(self) -> None:
        """Send SIGKILL to everything in the group now; nothing once the call has ended."""
        self.retire()
        super().kill()

    def retire(self) -> None:
        """Let it end with this call."""
        self._spoiled = True
        self._empty = False

    def remove(self) -> bool:
        """Give it back, or remove it; ``False`` while the kernel calls a directory busy."""
        if self._gone:
            return True
        if not self._offered:
            self._offered = True
            self._gone = self._take_back(self)
        if not self._gone:
            self._gone = super().remove()
            if self._gone:
                self._lease.end()
            self.slot.close()
        return self._gone

    def end(self) -> bool:
        """End the lease; whether the next call would find the slot as new."""
        counted = self._counted
        if counted is None or self._is_marked(counted) or not (self._empty or not self.populated()):
            return False
        if (counted.peak_pids or 0) > 1 and not self.slot.renew("pids"):
            return False
        self._lease.end()
        # Whoever froze or killed it while we looked did so before the lease's end.
        return not (self._spoiled or self._lease.froze)

    def _is_marked(self, counted: Counters) -> bool:
        """Whether something is left in it, or happened in it, that tells on the next call."""
        if self._spoiled or self._lease.froze or counted.oom_kills or counted.pids_refused:
            return True
        left = self.control.memory()
        return bool(self.control.cpu_throttled()) or left is None or left > LEFT_MOST


class Slots:
    """The slots of one run; at most ``most``, lent and idle ones together. Thread-safe."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._idle: dict[Slot, None] = {}
        self._lent = 0
        self._lock = threading.Lock()
        self._closed = False

    def lend(
        self, place: str, make: Callable[[], Iterable[Leaf]], files: CgroupFiles
    ) -> Slot | None:
        """An idle slot of ``place``, else a new one; ``None`` when there are as many as may be.

        Raises:
            OSError: ``make`` could not make the directories.
        """
        with self._lock:
            found = next((slot for slot in self._idle if slot.place == place), None)
            if found is not None:
                del self._idle[found]
                self._lent += 1
                return found
            if self._closed or self._lent >= self.most:
                return None
            evicted = None
            if self._lent + len(self._idle) >= self.most:
                evicted = next(iter(self._idle))
                del self._idle[evicted]
            self._lent += 1
        if evicted is not None:
            self._discard(evicted)
        try:
            return Slot(place, make(), files)
        except BaseException:
            self.lost()
            raise

    def lost(self) -> None:
        """A slot that was lent does not come back."""
        with self._lock:
            self._lent -= 1

    def take_back(self, group: LentGroup) -> bool:
        """Keep the slot for the next call if that would find it as new."""
        fit = group.end()
        with self._lock:
            self._lent -= 1
            fit = fit and not self._closed
            if fit:
                group.slot.uses += 1
                self._idle[group.slot] = None
        return fit

    def drop(self, place: str | None = None) -> None:
        """Remove the idle slots of a place, or all and take back none any more."""
        with self._lock:
            self._closed = self._closed or place is None
            gone = [slot for slot in self._idle if place is None or slot.place == place]
            for slot in gone:
                del self._idle[slot]
        for slot in gone:
            self._discard(slot)

    def _discard(self, slot: Slot) -> None:
        slot.close()
        for leaf in slot.leaves:
            slot.files.remove(leaf.path)

    def statistics(self) -> tuple[int, int]:
        """Slots that are lent, and idle ones."""
        with self._lock:
            return self._lent, len(self._idle)
