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
    Control,
    Leaf,
    ToolGroup,
    read_layout,
)
from agentrt.sandbox.state import RunState

__all__ = ["Arena", "Limits"]

NAME = "contention"
REMOVE_SECONDS = 10.0
SOFT = "memory.soft_limit_in_bytes"
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
        self.parent = Control((), self.files)
        self._usage_files: dict[str | None, Path | None] = {}
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
        self.parent = Control(self.leaves, self.files)
        self._usage_files = {
            name: group.control.memory_file() for name, group in self.groups.items()
        }
        self._usage_files[None] = self.parent.memory_file()
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
    def on_v2(self) -> bool:
        """Whether memory is limited by v2 files (memory.high and memory.low exist)."""
        leaf = self.parent.carrier("memory")
        return leaf is not None and leaf.hierarchy.version == 2

    def usage(self, name: str | None = None) -> int:
        """Bytes charged to a replay's group, or to all of them."""
        path = self._usage_files[name]
        return int(self.files.read(path) or 0) if path is not None else 0

    def oom_kills(self, name: str) -> int:
        """Processes of a replay's group that the kernel killed for lack of memory."""
        return self.groups[name].control.memory_events().get("oom_kill", 0)

    def control(self, name: str) -> Control:
        """What can be done to a replay's group."""
        return self.groups[name].control

    def set_max(self, name: str, size: int) -> None:
        """Limit a replay to ``size`` bytes.

        Raises:
            BackendUnavailable: as of the next two, the kernel refused it.
        """
        _must(self.control(name).set_max(size))

    def set_high(self, name: str, size: int | None) -> None:
        """Slow a replay down above ``size`` bytes; None lifts it. Cgroup v2 only."""
        _must(self.control(name).set_high(size))

    def set_low(self, name: str, size: int) -> None:
        """Protect ``size`` bytes of a replay from reclaim. Cgroup v2 only."""
        _must(self.control(name).set_low(size))

    def set_soft(self, name: str, size: int) -> None:
        """Set the soft limit of cgroup v1."""
        leaf = self.control(name).carrier("memory")
        if leaf is not None:
            error = self.files.write(leaf.path / SOFT, str(size))
            _must("" if error is None else f"{SOFT}: {error.strerror}")

    def stall(self) -> float | None:
        """Seconds so far in which all replays stood waiting for memory (PSI full), if told."""
        path = self.parent.pressure_path("memory")
        return None if path is None else pressure_total(self.files.read(path))

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


def _must(refused: str) -> None:
    if refused:
        raise BackendUnavailable(
            f"The kernel refused {refused}.",
            remedy="See what this machine can enforce: agentrt doctor",
        )


def pressure_total(text: str | None) -> float | None:
    """Return the seconds of the ``full`` line of a pressure file."""
    for line in (text or "").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "full":
            told = dict(word.split("=", 1) for word in rest.split())
            return int(told["total"]) / 1e6
    return None
