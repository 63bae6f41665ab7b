"""What the sandboxes of one run share: its record, its directory, its cgroups."""

from __future__ import annotations

import itertools
import resource
from pathlib import Path

from anyio import to_thread

from agentrt.errors import ToolNotStarted
from agentrt.resources.cgroup import CgroupTree, LimitsLike, read_layout
from agentrt.resources.governor import Governor
from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.state import RunState
from agentrt.sandbox.supervise import Group
from agentrt.sandbox.tracked import TrackedGroup

__all__ = ["Host", "slots_kept"]

MOST_SLOTS = 16
FILES_A_SLOT = 12
SHARE_OF_FILES = 0.25


class Host:
    """One run on this machine. Open it before anything is made, close it last.

    A ``RunState`` that was handed in stays its owner's to close; otherwise the host opens and
    closes its own.
    """

    def __init__(
        self,
        state: RunState,
        tree: CgroupTree,
        *,
        owns_state: bool,
        governor: Governor | None = None,
    ) -> None:
        self.state = state
        self.governor = governor
        self._own_governor = governor is None
        self.tree = tree
        self._owns_state = owns_state
        self._numbers = itertools.count(1)

    @classmethod
    async def open(cls, state: RunState | None = None, governor: Governor | None = None) -> Host:
        """Register the run and find out where cgroups can be made.

        A ``governor`` that was handed in governs every call, and stays its owner's to close once
        the host is closed. Otherwise one is made for the first call that declares an intent.

        Raises:
            ConfigError: the run cannot be registered.
        """

        def prepare() -> Host:
            run = state or RunState.open()
            tree = CgroupTree(run.run_id, read_layout(), slots=slots_kept())
            # Recorded before they exist: wherever the trial ends, a later start can clean up.
            run.note(cgroups=tree.candidates)
            tree.open()
            if governor is not None:
                governor.open(tree)
            return cls(run, tree, owns_state=state is None, governor=governor)

        return await to_thread.run_sync(prepare)

    def sandbox_id(self) -> str:
        """A new id; unique on this machine through the run id in every longer name."""
        return f"s{next(self._numbers)}-{self.state.run_id[-4:]}"

    def directory(self, sandbox_id: str) -> Path:
        """The sandbox's own directory below the run's."""
        return self.state.temp / sandbox_id

    async def group(
        self, place: str, tool: str, limits: LimitsLike, marker: str, *, spare_pids: int = 0
    ) -> Group:
        """Make the cgroup of a tool call, or what stands in for it where none can be made.

        Raises:
            ToolNotStarted: cgroups work here but this one could not be made.
        """

        # Some tenths of a millisecond, most of it this interpreter's: a thread would need more.
        try:
            group = self.tree.lend(place, tool, limits, spare_pids=spare_pids)
        except OSError as error:
            raise ToolNotStarted(
                f"Cannot make the cgroup of the tool call: {error}.",
                remedy="Look for a limit on their number: cgroup.max.descendants.",
            ) from error
        if not self.tree.branches:
            return TrackedGroup(marker, group.unenforced)
        return group

    async def govern(self) -> Governor:
        """The governor of the host's calls, made now if there is none."""
        if self.governor is None:
            governor = self.governor = Governor()
            await to_thread.run_sync(governor.open, self.tree)
        return self.governor

    async def govern_by(self, governor: Governor) -> None:
        """Have ``governor`` govern the host's calls from now on."""
        former, owned = self.governor, self._own_governor
        self.governor, self._own_governor = governor, False

        def change() -> None:
            if former is not None and owned:
                former.close()
            governor.open(self.tree)

        await to_thread.run_sync(change)

    def place(self, spec: SandboxSpec, sandbox_id: str) -> str:
        """Where a sandbox's cgroups go: with its program's, else a place of its own. Blocking.

        Raises:
            OSError: a directory could not be made.
        """
        if self.governor is None or spec.program is None or not self.governor.is_open:
            return sandbox_id
        return self.governor.budget_place(spec.tenant or "default", spec.program)

    def marker(self, sandbox_id: str, tool: str) -> str:
        """The value of ``ENV_TOOL`` in the tool call's environment."""
        return f"{self.state.run_id}/{sandbox_id}/{tool}"

    async def close(self) -> None:
        """Remove the run's cgroups, and its record and directory if they are our own."""

        def remove() -> None:
            if self.governor is not None and self._own_governor:
                self.governor.close()
            self.tree.close()
            if self._owns_state:
                self.state.close()

        await to_thread.run_sync(remove)


def slots_kept() -> int:
    """How many cgroups a run keeps for the next call: their open files leave enough to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_SLOTS
    return min(MOST_SLOTS, int(SHARE_OF_FILES * soft / FILES_A_SLOT))
