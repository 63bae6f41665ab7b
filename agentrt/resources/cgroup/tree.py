"""The branch of one run in every hierarchy: ``agentrt/<run>/<place>/tool-<n>``.

A place is a sandbox of its own, or ``<tenant>/<program>``: then the program's framework and all its
tool calls lie side by side, and inner directories, which hold no process, carry the budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrt.resources.cgroup.control import Control
from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.group import Leaf, ToolGroup
from agentrt.resources.cgroup.layout import CONTROLLERS, Hierarchy, Layout
from agentrt.resources.cgroup.limits import LimitsLike
from agentrt.resources.cgroup.names import FRAMEWORK
from agentrt.resources.cgroup.slots import LentGroup, Slots

__all__ = ["PARENT", "Branch", "CgroupTree", "clear_run"]

PARENT = "agentrt"
TRIAL = "trial"
OPTIONAL = ("io",)
"""Handed down where there is one; nothing depends on it."""

NO_PERMISSION = (
    "Run as root, or inside a delegated unit: systemd-run --user --pty -p Delegate=yes "
    "-p DelegateSubgroup=main -- COMMAND"
)
NO_CONTROLLER = "Boot with the controller enabled, or have it delegated to this unit."


@dataclass(frozen=True, slots=True)
class Branch:
    """Where the run may make cgroups in one hierarchy: below ``base``."""

    hierarchy: Hierarchy
    base: Path


class CgroupTree:
    """Makes the cgroups of one run and removes them all, shared parents included.

    Every hierarchy that can limit, kill or count takes part where we may make directories and move
    processes; that is tried, never inferred. ``branches`` is empty where nothing works. At most
    ``slots`` cgroups that ``lend`` made are kept for the next call of their place.
    """

    def __init__(
        self, run_id: str, layout: Layout, files: CgroupFiles | None = None, *, slots: int = 0
    ) -> None:
        self.run_id = run_id
        self.layout = layout
        self._files = files or CgroupFiles()
        self._refused: dict[Path, str] = {}
        self._known: set[Path] = set()
        self.branches: tuple[Branch, ...] = ()
        self._slots = Slots(slots)

    def open(self) -> None:
        """Find where cgroups can be made. Blocking: some milliseconds per hierarchy."""
        self.branches = tuple(self._find_branches())

    def _find_branches(self) -> Iterator[Branch]:
        for hierarchy in self.layout.hierarchies:
            if not _useful(hierarchy, self.layout):
                continue
            for base in _bases(hierarchy):
                if said := self._try_base(hierarchy, base):
                    self._refused.setdefault(hierarchy.mount, said)
                else:
                    yield Branch(hierarchy, base)
                    break

    def _try_base(self, hierarchy: Hierarchy, base: Path) -> str:
        """Make, join and remove a cgroup below ``base``; return what failed, or nothing."""
        trial = base / PARENT / self.run_id / TRIAL
        try:
            self._files.make(trial)
        except OSError as error:
            return f"{error.strerror}: {base}"
        if hierarchy.version == 2:
            self._delegate([base, base / PARENT, base / PARENT / self.run_id])
        refused = self._files.can_join(trial)
        self._files.remove_one(trial)
        if refused is None:
            return ""
        self._drop_parents(base)
        return refused.strerror or str(refused)

    def _delegate(self, chain: Sequence[Path]) -> None:
        """Hand the limit controllers down a v2 chain as far as the kernel allows.

        What fails here shows when a limit is set: the control file is then missing, and the limit
        is reported as not enforced.
        """
        for directory in chain:
            offered = (self._files.read(directory / "cgroup.controllers") or "").split()
            for name in (*CONTROLLERS, *OPTIONAL):
                if name in offered:
                    self._files.write(directory / "cgroup.subtree_control", f"+{name}")

    @property
    def candidates(self) -> tuple[Path, ...]:
        """Every directory that ``open`` may make for the run, wherever it then settles."""
        return tuple(
            base / PARENT / self.run_id
            for hierarchy in self.layout.hierarchies
            if _useful(hierarchy, self.layout)
            for base in _bases(hierarchy)
        )

    @property
    def run_paths(self) -> tuple[Path, ...]:
        """The run's directory in each hierarchy that takes part."""
        return tuple(branch.base / PARENT / self.run_id for branch in self.branches)

    def tool(
        self, sandbox_id: str, name: str, limits: LimitsLike, *, spare_pids: int = 0
    ) -> ToolGroup:
        """Make the cgroup of one tool call and set its limits.

        ``spare_pids`` is added to the pids limit for processes of the sandbox itself. What could
        not be set is in ``unenforced`` of the group, with the remedy.

        Raises:
            OSError: a directory could not be made.
        """
        leaves = self._leaves(sandbox_id, name)
        return self._limited(ToolGroup(leaves, self._files), _Padded(limits, spare_pids))

    def lend(self, place: str, name: str, limits: LimitsLike, *, spare_pids: int = 0) -> ToolGroup:
        """As ``tool``, but where it pays the cgroup of an earlier call of the place, empty again.

        ``name`` is for a new one.

        Raises:
            OSError: a directory could not be made.
        """
        padded = _Padded(limits, spare_pids)
        if self._recycles:
            slot = self._slots.lend(place, lambda: self._leaves(place, name), self._files)
            if slot is not None:
                group = LentGroup(slot, self._slots.take_back)
                if group.prepare(padded):
                    return self._limited(group, padded)
                group.retire()
                group.remove()
        return self._limited(ToolGroup(self._leaves(place, name), self._files), padded)

    @property
    def _recycles(self) -> bool:
        """Whether memory is on v1, whose peak can be reset and which costs three directories."""
        return any("memory" in branch.hierarchy.controllers for branch in self.branches)

    def slots(self) -> tuple[int, int]:
        """Cgroups that ``lend`` keeps: those in use, and those that wait for the next call."""
        return self._slots.statistics()

    def _limited(self, group: ToolGroup, limits: LimitsLike) -> ToolGroup:
        refused = group.apply(limits)
        group.unenforced = tuple(
            f"{limit}: {why}. {self._remedy(limit)}" for limit, why in refused.items()
        )
        return group

    def _leaves(self, place: str, name: str) -> list[Leaf]:
        return [self._leaf(branch, place, name) for branch in self.branches]

    def _leaf(self, branch: Branch, sandbox_id: str, name: str) -> Leaf:
        sandbox = self._inner(branch, sandbox_id)
        self._files.make(sandbox / name)
        return Leaf(branch.hierarchy, sandbox / name)

    def _inner(self, branch: Branch, place: str) -> Path:
        """Make the directories of a place, each handing its controllers down."""
        inner = branch.base / PARENT / self.run_id
        if inner / place in self._known:
            return inner / place
        for part in Path(place).parts:
            inner /= part
            if not inner.exists():
                self._files.make(inner)
                if branch.hierarchy.version == 2:
                    self._delegate([inner])
        self._known.add(inner)
        return inner

    def place(self, place: str = "") -> ToolGroup:
        """The inner directories of a place, for budgets and pressure; no process goes there.

        Raises:
            OSError: a directory could not be made.
        """
        leaves = [Leaf(branch.hierarchy, self._inner(branch, place)) for branch in self.branches]
        return ToolGroup(leaves, self._files)

    def inner(self, place: str) -> Control:
        """The verbs of a place's inner directories, made or not."""
        leaves = [
            Leaf(branch.hierarchy, branch.base / PARENT / self.run_id / place)
            for branch in self.branches
        ]
        return Control(leaves, self._files)

    def places_above(self, group: ToolGroup) -> tuple[str, ...]:
        """The places that a tool call's group is in, the widest first."""
        if not group.paths:
            return ()
        path = group.paths[0]
        top = next(top for top in self.run_paths if path.is_relative_to(top))
        parts = path.relative_to(top).parts[:-1]
        return tuple("/".join(parts[: end + 1]) for end in range(len(parts)))

    def framework(self, place: str) -> ToolGroup:
        """Make the cgroup of a program's framework: the agent itself, beside its tool calls.

        Raises:
            OSError: a directory could not be made.
        """
        return ToolGroup(self._leaves(place, FRAMEWORK), self._files)

    def drop_place(self, place: str) -> bool:
        """Remove a program's directories, and its tenant's once that has no other program."""
        gone = self.drop_sandbox(place)
        parents = {base.parent for base in self._places(place)}
        for parent in parents:
            if parent.name != self.run_id:
                self._files.remove_one(parent)
        return gone

    def _remedy(self, limit: str) -> str:
        holder = self.layout.v1(limit) or self.layout.v2
        if holder is not None and holder.mount in self._refused:
            return f"({self._refused[holder.mount]}) {NO_PERMISSION}"
        return NO_CONTROLLER if self.branches else NO_PERMISSION

    def drop_sandbox(self, sandbox_id: str) -> bool:
        """Remove a sandbox's empty directories everywhere, those made by a container engine too."""
        self._slots.drop(sandbox_id)
        places = self._places(sandbox_id)
        # A tenant may go with its last program: what is known to be there is known no more.
        self._known.clear()
        gone = [self._files.remove(path) for path in places]
        return all(gone)

    def _places(self, place: str) -> set[Path]:
        mounts = {h.mount / PARENT / self.run_id for h in self.layout.hierarchies}
        return {path / place for path in mounts | set(self.run_paths)}

    def close(self) -> bool:
        """Remove the run's directories and the shared parent once nobody uses it."""
        self._slots.drop()
        bases = {branch.base for branch in self.branches}
        bases |= {hierarchy.mount for hierarchy in self.layout.hierarchies}
        gone = [self._files.remove(base / PARENT / self.run_id) for base in sorted(bases)]
        for base in bases:
            self._files.remove_one(base / PARENT)
        return all(gone)

    def _drop_parents(self, base: Path) -> None:
        self._files.remove_one(base / PARENT / self.run_id)
        self._files.remove_one(base / PARENT)


def clear_run(
    run_id: str, layout: Layout, recorded: Sequence[Path], files: CgroupFiles
) -> tuple[list[int], bool]:
    """Kill what is left in a dead run's cgroups and try to remove them; the caller repeats.

    ``recorded`` are the run's directories as its record names them: only those that lie in a cgroup
    mount and are named after the run are touched. Returns the processes that were signalled and
    whether everything is gone.
    """
    mounts = [hierarchy.mount for hierarchy in layout.hierarchies]
    paths = {mount / PARENT / run_id for mount in mounts}
    paths |= {
        path
        for path in recorded
        if path.parts[-2:] == (PARENT, run_id) and any(path.is_relative_to(m) for m in mounts)
    }
    killed: set[int] = set()
    for path in sorted(paths):
        files.write(path / "cgroup.kill", "1")
        pids = files.pids(path)
        killed.update(pids)
        files.kill(pids)
    gone = [files.remove(path) for path in sorted(paths)]
    for path in paths:
        files.remove_one(path.parent)
    return sorted(killed), all(gone)


class _Padded:
    """Limits with room for the processes that the sandbox itself needs."""

    def __init__(self, limits: LimitsLike, spare_pids: int) -> None:
        self.memory = limits.memory
        self.cpu = limits.cpu
        self.pids = None if limits.pids is None else limits.pids + spare_pids


def _useful(hierarchy: Hierarchy, layout: Layout) -> bool:
    if hierarchy.version == 2:
        return True
    # cpuacct alone only counts, which the v2 tree does as well.
    counted = {"cpuacct"} if layout.v2 is None else set()
    return bool(hierarchy.controllers & (set(CONTROLLERS) | counted))


def _bases(hierarchy: Hierarchy) -> list[Path]:
    """Where to try: the top of the hierarchy, the parent of our own cgroup, our own cgroup."""
    places = [hierarchy.mount]
    if hierarchy.own != hierarchy.mount:
        places += [hierarchy.own.parent, hierarchy.own]
    return list(dict.fromkeys(places))
