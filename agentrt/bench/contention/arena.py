"""The cgroups of the experiment: a parent that carries the limit, and one child a replay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agentrt.errors import BackendUnavailable, SandboxError
from agentrt.resources.cgroup import (
    PARENT,
    CgroupFiles,
    CgroupTree,
    LayoutKind,
    Leaf,
    ToolGroup,
    read_layout,
)
from agentrt.sandbox.state import RunState

__all__ = ["Arena", "Limits"]

NAME = "contention"
REMOVE_SECONDS = 10.0
USUAL_WEIGHT, USUAL_SHARES = 100, 1024
MOST_WEIGHT, MOST_SHARES = 10_000, 102_400
NO_CGROUPS = (
    "Run as root, or in a delegated unit: systemd-run --user --pty -p Delegate=yes "
    "-p DelegateSubgroup=main -- COMMAND"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What ``ToolGroup.apply`` takes; memory in bytes."""

    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None


class Arena:
    """A parent cgroup with the memory limit and, below it, a cgroup for each replay.

    A context manager; leaving it kills what runs and removes everything. The run is registered, so
    that a later start of agentrt cleans up behind one that was killed.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self.names = tuple(names)
        self.limit = limit
        self.files = CgroupFiles()
        self._state: RunState | None = None
        self._tree: CgroupTree | None = None
        self.leaves: tuple[Leaf, ...] = ()
        self.groups: dict[str, ToolGroup] = {}

    def __enter__(self) -> Self:
        """Make the cgroups.

        Raises:
            BackendUnavailable: this user cannot make memory cgroups here.
        """
        self._state = RunState.open()
        try:
            self._make(self._state)
        except BaseException:
            self.close()
            raise
        return self

    def _make(self, state: RunState) -> None:
        self._tree = tree = CgroupTree(state.run_id, read_layout(), self.files)
        state.note(cgroups=tree.candidates)
        tree.open()
        self.groups = {name: tree.tool(NAME, name, Limits()) for name in self.names}
        self._outweigh_the_rest(tree)
        bases = [branch.base / PARENT / state.run_id / NAME for branch in tree.branches]
        hierarchies = [branch.hierarchy for branch in tree.branches]
        self.leaves = tuple(Leaf(*pair) for pair in zip(hierarchies, bases, strict=True))
        refused = ToolGroup(self.leaves, self.files).apply(Limits(memory=self.limit))
        if refused:
            raise BackendUnavailable(
                f"No memory limit can be set: {refused['memory']}.", remedy=NO_CGROUPS
            )

    def _outweigh_the_rest(self, tree: CgroupTree) -> None:
        """Give all replays together more of the CPU than what else runs on the machine.

        Who of them gets how much is left to the policies; other work would only add noise.
        """
        for branch in tree.branches:
            for place in (branch.base / PARENT, branch.base / PARENT / tree.run_id):
                if "cpu" in branch.hierarchy.controllers:
                    self.files.write(place / "cpu.shares", str(MOST_SHARES))
                elif branch.hierarchy.version == 2:
                    self.files.write(place / "cpu.weight", str(MOST_WEIGHT))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def kind(self) -> LayoutKind:
        """The machine's cgroup layout."""
        return read_layout().kind if self._tree is None else self._tree.layout.kind

    @property
    def on_v2(self) -> bool:
        """Whether memory is limited by v2 files (memory.high and memory.low exist)."""
        return self.memory_version == 2

    @property
    def memory_version(self) -> int:
        """The cgroup version, 1 or 2, that carries the memory limit."""
        return self._memory().hierarchy.version

    def _memory(self) -> Leaf:
        for leaf in self.leaves:
            if "memory" in leaf.hierarchy.controllers:
                return leaf
        for leaf in self.leaves:
            offered = self.files.read(leaf.path / "cgroup.controllers") or ""
            if leaf.hierarchy.version == 2 and "memory" in offered.split():
                return leaf
        raise BackendUnavailable(
            "There is no memory controller for the experiment's cgroups.", remedy=NO_CGROUPS
        )

    def memory_file(self, name: str | None, on_v2: str, on_v1: str) -> Path:
        """The memory control file of a replay's group, or of the parent."""
        leaf = self._memory()
        place = leaf.path if name is None else leaf.path / name
        return place / (on_v2 if leaf.hierarchy.version == 2 else on_v1)

    def usage(self, name: str | None = None) -> int:
        """Bytes charged to a replay's group, or to all of them."""
        path = self.memory_file(name, "memory.current", "memory.usage_in_bytes")
        return int(self.files.read(path) or 0)

    def oom_kills(self, name: str) -> int:
        """Processes of a replay's group that the kernel killed for lack of memory."""
        return self.groups[name].counters().oom_kills or 0

    def set_memory(self, name: str, file: str, value: int | str) -> None:
        """Write a memory control file of a replay's group.

        Raises:
            BackendUnavailable: the kernel refused it.
        """
        path = self.memory_file(name, file, file)
        error = self.files.write(path, str(value))
        if error is not None:
            raise BackendUnavailable(
                f"{path} cannot be set to {value}: {error.strerror}.",
                remedy="See what this machine can enforce: agentrt doctor",
            )

    def set_weight(self, name: str, weight: int) -> None:
        """Set a replay's share of the CPU (100 is usual), where a CPU controller is at hand."""
        for leaf in self.leaves:
            place = leaf.path / name
            if "cpu" in leaf.hierarchy.controllers:
                shares = max(2, weight * USUAL_SHARES // USUAL_WEIGHT)
                self.files.write(place / "cpu.shares", str(shares))
            elif leaf.hierarchy.version == 2:
                self.files.write(place / "cpu.weight", str(weight))

    def freeze(self, name: str, frozen: bool) -> None:
        """Stop a replay's processes, or let them go on, through the v2 tree."""
        for leaf in self.leaves:
            if leaf.hierarchy.version == 2:
                self.files.write(leaf.path / name / "cgroup.freeze", str(int(frozen)))

    def stall(self) -> float | None:
        """Seconds so far in which all replays stood waiting for memory (PSI full), if told."""
        for leaf in self.leaves:
            if leaf.hierarchy.version == 2:
                return pressure_total(self.files.read(leaf.path / "memory.pressure"))
        return None

    def close(self) -> None:
        """Kill what runs, remove the cgroups and the record. Idempotent; bounded.

        Raises:
            SandboxError: something could not be removed.
        """
        left = [name for name, group in self.groups.items() if not self._clear(group)]
        self.groups = {}
        if self._tree is not None and not left:
            self._tree.close()
            self._tree = None
        if self._state is not None and not left:
            self._state.close()
            self._state = None
        if left:
            raise SandboxError(
                f"The cgroups of {', '.join(left)} cannot be removed.",
                remedy="Remove them with: agentrt sandbox gc",
            )

    def _clear(self, group: ToolGroup) -> bool:
        deadline = time.monotonic() + REMOVE_SECONDS
        pause = 0.001
        while group.populated() or not group.remove():
            if time.monotonic() > deadline:
                return False
            group.kill()
            time.sleep(pause)
            pause = min(0.05, 2 * pause)
        return True


def pressure_total(text: str | None) -> float | None:
    """Return the seconds of the ``full`` line of a pressure file."""
    for line in (text or "").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "full":
            told = dict(word.split("=", 1) for word in rest.split())
            return int(told["total"]) / 1e6
    return None
