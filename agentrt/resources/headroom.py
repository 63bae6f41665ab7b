"""How much memory this process may still take: of the machine, and within its cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.layout import Hierarchy, Layout, read_layout

__all__ = ["Headroom", "cgroup_headroom", "memory_headroom"]

_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Limit, use, and the line of ``memory.stat`` with the file cache that the kernel gives up first"""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bytes that can be had, and what sets that bound, as a phrase."""

    bytes: int
    bound: str


def memory_headroom(layout: Layout | None = None) -> Headroom:
    """Return the smallest headroom among the machine's and those of our cgroups."""
    free = Headroom(psutil.virtual_memory().available, "free on this machine")
    found = cgroup_headroom(read_layout() if layout is None else layout)
    return min([free, *found], key=lambda one: one.bytes)


def cgroup_headroom(layout: Layout) -> Iterator[Headroom]:
    """Yield the headroom of each of our cgroups that has a limit on memory, own to outermost."""
    hierarchies = (layout.v2, layout.v1("memory"))
    for hierarchy in hierarchies:
        if hierarchy is not None:
            for directory in _upwards(hierarchy):
                room = _room(directory, hierarchy.version)
                if room is not None:
                    yield Headroom(room, f"left below the memory limit of {directory}")


def _upwards(hierarchy: Hierarchy) -> Iterator[Path]:
    directory = hierarchy.own
    while directory != hierarchy.mount and hierarchy.mount in directory.parents:
        yield directory
        directory = directory.parent
    yield hierarchy.mount


def _room(directory: Path, version: int) -> int | None:
    """Return limit less use, with the file cache that can go; None without a limit."""
    files = CgroupFiles()
    limit_name, use_name, cache_name = _NAMES[version]
    limit = _number(files.read(directory / limit_name))
    use = _number(files.read(directory / use_name))
    if limit is None or use is None or limit >= 2**62:  # version 1 writes a huge number for none
        return None
    cache = 0
    for line in (files.read(directory / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == cache_name:
            cache = _number(value) or 0
    return max(0, limit - use + cache)


def _number(text: str | None) -> int | None:
    """Return a count of bytes; None for a missing file and for ``max``."""
    text = "" if text is None else text.strip()
    return int(text) if text.isdigit() else None
