"""Where the calls of programs go: the inner directories with their budgets, and the frameworks."""

from __future__ import annotations

from agentrt.resources.cgroup import CgroupTree
from agentrt.resources.cgroup.names import program_place
from agentrt.resources.driver import Driver
from agentrt.resources.frameworks import Framework, homes, move
from agentrt.resources.governed import GovernorConfig

__all__ = ["Places"]


class Places:
    """The places of one run's programs. Blocking; not thread-safe but for ``turn``."""

    def __init__(self, config: GovernorConfig, tree: CgroupTree, driver: Driver) -> None:
        self.notes: tuple[str, ...] = ()
        self._config = config
        self._tree = tree
        self._driver = driver
        self._budgeted: set[str] = set()
        self._frameworks: dict[str, Framework] = {}

    def budget(self, tenant: str, program: str) -> str:
        """Where a program's cgroups go; sets the budgets of the inner directories once.

        Raises:
            OSError: a directory could not be made.
        """
        place = program_place(tenant, program)
        if place in self._budgeted:
            return place
        self._budgeted.add(place)
        budget = self._config.tenants.get(tenant, self._config.tenant)
        parts = ((place.partition("/")[0], budget), (place, self._config.program))
        for where, limits in parts:
            control = self._tree.place(where).control
            for said in (
                control.set_max(limits.memory) if limits.memory is not None else "",
                control.set_cpu(limits.cpu) if limits.cpu is not None else "",
                control.set_pids(limits.pids) if limits.pids is not None else "",
            ):
                if said:
                    self.notes = (*self.notes, f"budget of {where}: {said}")
        return place

    def framework(self, tenant: str, program: str, pid: int) -> str:
        """Put a program's agent process in a cgroup beside its tool calls.

        Returns an empty string, or why it could not be moved.
        """
        try:
            origin = homes(pid, self._tree.layout)
            group = self._tree.framework(self.budget(tenant, program))
            move(pid, group.procs)
        except OSError as error:
            return f"{error.strerror or error}"
        if program not in self._frameworks:
            self._frameworks[program] = Framework(group, pid, origin)
        self._driver.framework(program, group.control)
        return ""

    def turn(self, program: str, started: bool) -> None:
        """A program's turn began or ended: its framework is idle in between."""
        if program in self._frameworks:
            self._driver.turn(program, started)

    def ended(self, tenant: str, program: str) -> None:
        """Remove a program's directories; what still runs there stays."""
        place = program_place(tenant, program)
        self._driver.framework(program, None)
        framework = self._frameworks.pop(program, None)
        if framework is not None:
            framework.release()
        self._budgeted.discard(place)
        self._tree.drop_place(place)

    def close(self) -> None:
        """Let the frameworks go back where they came from."""
        for framework in self._frameworks.values():
            framework.release()
        self._frameworks.clear()
