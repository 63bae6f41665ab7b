"""The cgroup of one tool call, over every hierarchy that takes part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agentrt.resources.cgroup.control import Control, Leaf
from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.limits import Counters, LimitsLike, Setting, flat_counters, settings

__all__ = ["Leaf", "ToolGroup"]

WORTH_RECLAIMING = 1 << 20
"""Bytes below which a dying cgroup is not worth the time to empty it."""


class ToolGroup:
    """The directories that together are one tool call's cgroup.

    Made by ``CgroupTree.tool``. Not thread-safe; every method returns quickly and never waits for a
    process to die: the caller repeats ``kill`` until ``populated`` is false, then calls ``remove``.
    """

    def __init__(self, leaves: Iterable[Leaf], files: CgroupFiles) -> None:
        self._leaves = tuple(leaves)
        self._files = files
        self._reclaimed = False
        self.control = Control(self._leaves, files)
        self.unenforced: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its directory in each hierarchy."""
        return tuple(leaf.path for leaf in self._leaves)

    @property
    def procs(self) -> tuple[Path, ...]:
        """The ``cgroup.procs`` files that a process writes ``0`` into to be in the group."""
        return tuple(path / "cgroup.procs" for path in self.paths)

    def apply(self, limits: LimitsLike) -> dict[str, str]:
        """Set the limits; return, by limit name, why the ones that are not in force are not."""
        refused: dict[str, str] = {}
        for name in ("memory", "cpu", "pids"):
            if getattr(limits, name) is None:
                continue
            leaf = self.control.carrier(name)
            if leaf is None:
                refused[name] = f"no {name} controller that agentrt may use"
            elif said := self._write_all(leaf, name, settings(limits, leaf.hierarchy.version)):
                refused[name] = said
        return refused

    def _write_all(self, leaf: Leaf, name: str, writes: list[Setting]) -> str:
        for write in writes:
            if write.controller != name:
                continue
            error = self._files.write(leaf.file(write.file), write.value)
            if error is not None and not write.optional:
                return f"{write.file}: {error.strerror or error}"
        return ""

    def counters(self) -> Counters:
        """Read what the group measured so far; call it before ``remove``."""
        return Counters(
            peak_memory=self._number("memory", "memory.peak", "memory.max_usage_in_bytes"),
            cpu_seconds=self._cpu_seconds(),
            peak_pids=self._number("pids", "pids.peak", "pids.peak"),
            oom_kills=self._event("memory", "memory.events", "memory.oom_control", "oom_kill"),
            pids_refused=self._event("pids", "pids.events", "pids.events", "max"),
        )

    def _text(self, controller: str, on_v2: str, on_v1: str) -> str | None:
        leaf = self.control.carrier(controller)
        if leaf is None:
            return None
        return self._files.read(leaf.file(on_v2 if leaf.hierarchy.version == 2 else on_v1))

    def _number(self, controller: str, on_v2: str, on_v1: str) -> int | None:
        text = (self._text(controller, on_v2, on_v1) or "").strip()
        return int(text) if text.isdigit() else None

    def _event(self, controller: str, on_v2: str, on_v1: str, key: str) -> int | None:
        return flat_counters(self._text(controller, on_v2, on_v1)).get(key)

    def _cpu_seconds(self) -> float | None:
        # cpu.stat of a v2 directory counts time also where the cpu controller sits on v1.
        for leaf in self._leaves:
            if leaf.hierarchy.version == 2:
                spent = flat_counters(self._files.read(leaf.file("cpu.stat"))).get("usage_usec")
                if spent is not None:
                    return spent / 1e6
        text = (self._text("cpuacct", "cpuacct.usage", "cpuacct.usage") or "").strip()
        return int(text) / 1e9 if text.isdigit() else None

    def kill(self) -> None:
        """Send SIGKILL to everything in the group now."""
        for leaf in self._leaves:
            if leaf.hierarchy.version == 2:
                self._files.write(leaf.file("cgroup.kill"), "1")
        stragglers = {pid for path in self.paths for pid in self._files.pids(path)}
        if not stragglers:
            return
        # Without cgroup.kill a forking tree could outrun the list: no more forks first.
        carrier = self.control.carrier("pids")
        if carrier is not None:
            self._files.write(carrier.file("pids.max"), "0")
        self._files.kill(sorted(stragglers))

    def retire(self) -> None:
        """Let no other call have it; a plain group is made for one call anyway."""

    def populated(self) -> bool:
        """Whether a live process is in the group or below it."""
        return any(self._leaf_populated(leaf) for leaf in self._leaves)

    def _leaf_populated(self, leaf: Leaf) -> bool:
        if leaf.hierarchy.version == 2:
            events = flat_counters(self._files.read(leaf.file("cgroup.events")))
            return events.get("populated", 0) != 0
        return bool(self._files.pids(leaf.path))

    def lean(self) -> bool:
        """Whether it holds so little that removing it asks nothing but its directories' end."""
        return (self.control.memory() or 0) < WORTH_RECLAIMING

    def remove(self) -> bool:
        """Remove the directories; ``False`` while the kernel still calls one of them busy.

        What they still hold is reclaimed first: a removed cgroup lives on, dying, until its last
        page is gone.
        """
        if not self._reclaimed:
            self._reclaimed = True
            self._reclaim_left()
        gone = [self._files.remove(path) for path in self.paths]
        return all(gone)

    def _reclaim_left(self) -> None:
        left = self.control.memory() or 0
        carrier = self.control.carrier("memory")
        if left < WORTH_RECLAIMING or carrier is None:
            return
        if carrier.hierarchy.version == 2:
            self.control.reclaim(left)
        else:
            self._files.write(carrier.file("memory.force_empty"), "1")
