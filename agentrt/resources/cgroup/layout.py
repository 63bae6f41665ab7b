"""Which cgroup hierarchies this machine has and where we are in them: parsed, never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["CONTROLLERS", "Hierarchy", "Layout", "LayoutKind", "parse_layout", "read_layout"]

LayoutKind: TypeAlias = Literal["v2", "hybrid", "v1", "none"]

CONTROLLERS = ("memory", "cpu", "pids")
"""The controllers that carry the limits of a tool call."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy.

    ``controllers`` are the v1 controllers bound to the mount; empty for v2, whose controllers are a
    property of each directory. ``own`` is the directory of the reading process, equal to ``mount``
    where the mount does not show it.
    """

    version: Literal[1, 2]
    mount: Path
    own: Path
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Layout:
    """All hierarchies of the machine, in mount order."""

    hierarchies: tuple[Hierarchy, ...] = ()

    @property
    def kind(self) -> LayoutKind:
        """``hybrid`` when v1 holds a limit controller and a v2 tree is mounted beside it."""
        limits_on_v1 = any(self.v1(name) for name in CONTROLLERS)
        if self.v2 is not None:
            return "hybrid" if limits_on_v1 else "v2"
        return "v1" if any(h.version == 1 for h in self.hierarchies) else "none"

    @property
    def v2(self) -> Hierarchy | None:
        """The v2 hierarchy, if one is mounted."""
        return next((h for h in self.hierarchies if h.version == 2), None)

    def v1(self, controller: str) -> Hierarchy | None:
        """The v1 hierarchy that holds ``controller``, if any."""
        return next(
            (h for h in self.hierarchies if h.version == 1 and controller in h.controllers), None
        )


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    point: str
    kind: str
    options: frozenset[str]


def parse_layout(mountinfo: str, self_cgroup: str) -> Layout:
    """Build the layout from the texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``."""
    own = dict(_own_paths(self_cgroup))
    seen: set[frozenset[str]] = set()
    found: list[Hierarchy] = []
    for mount in _cgroup_mounts(mountinfo):
        names = _v1_names(mount) if mount.kind == "cgroup" else frozenset[str]()
        # A hierarchy can be mounted twice (bind mounts); the first one is as good as the second.
        if names in seen:
            continue
        seen.add(names)
        found.append(_hierarchy(mount, names, own))
    return Layout(tuple(found))


def read_layout(proc: Path = Path("/proc")) -> Layout:
    """Read the layout of this machine; empty where ``proc`` shows no cgroup mount."""
    try:
        mountinfo = (proc / "self" / "mountinfo").read_text()
        self_cgroup = (proc / "self" / "cgroup").read_text()
    except OSError:
        return Layout()
    return parse_layout(mountinfo, self_cgroup)


def _cgroup_mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if separator and len(fields) >= 6 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            yield _Mount(
                _unescape(fields[3]), _unescape(fields[4]), tail[0], frozenset(tail[2].split(","))
            )


def _unescape(text: str) -> str:
    # mountinfo writes space, tab, newline and backslash as three octal digits
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def _v1_names(mount: _Mount) -> frozenset[str]:
    """Controllers and ``name=`` of a v1 mount: its super options without the generic ones."""
    generic = {"rw", "ro", "xattr", "noprefix", "clone_children", "seclabel"}
    return frozenset(
        o for o in mount.options - generic if not o.startswith(("release_agent=", "nsroot="))
    )


def _own_paths(self_cgroup: str) -> Iterator[tuple[frozenset[str], str]]:
    for line in self_cgroup.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield frozenset(parts[1].split(",")) - {""}, parts[2]


def _hierarchy(
    mount: _Mount, names: frozenset[str], own: Mapping[frozenset[str], str]
) -> Hierarchy:
    point = Path(mount.point)
    path = own.get(names, "/")
    root = mount.root.rstrip("/")
    inside = path == root or path.startswith(root + "/")
    below = path[len(root) :].strip("/") if inside else ""
    version: Literal[1, 2] = 2 if mount.kind == "cgroup2" else 1
    visible = below and ".." not in below.split("/")
    return Hierarchy(version, point, point / below if visible else point, names)
