"""Governs the tool calls of one runtime: intents in, limits and feedback out, one controller.

intent ─► envelope ─► driver.request ─► (waits) ─► cgroup with its limits ─► runs ─► feedback
             ▲                                                                │
             └───────────────────── learned from what it used ◄───────────────┘
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil

from agentrt.errors import ToolNotStarted
from agentrt.resources.cgroup import CgroupTree, Control, ToolGroup
from agentrt.resources.cgroup.names import program_place
from agentrt.resources.control_config import ControllerConfig, ControllerStatistics
from agentrt.resources.driver import Driver
from agentrt.resources.envelope import Budget, Envelope, make_envelope
from agentrt.resources.feedback import Ending, Feedback, make_feedback
from agentrt.resources.governed import CallInfo, Governed, GovernorConfig
from agentrt.resources.kernel_side import KernelSide
from agentrt.resources.learned import Learner, command_kind, tool_name
from agentrt.resources.ledger import Ledger
from agentrt.resources.places import Places
from agentrt.resources.pressure import PsiSource, watch_pressure
from agentrt.resources.sensors import SensorStatistics
from agentrt.resources.shares import Shares
from agentrt.resources.tickets import Ticket
from agentrt.resources.watch import Watcher

__all__ = ["CallInfo", "Governed", "Governor", "GovernorConfig"]

HOST_SHARE = 0.8
"""Share of the memory that is available at the start which tool calls may use in all."""


class Governor:
    """Admits, limits and accounts for tool calls. ``open`` it over a run's tree, ``close`` it."""

    def __init__(
        self, config: GovernorConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config or GovernorConfig()
        self._ledger = Ledger(self.config)
        # In a clamp's text they go by what they are, not by whose they are.
        self._program_budget = replace(self.config.program, name="program")
        self._any_tenant = replace(self.config.tenant, name="tenant")
        self._tenant_budgets = {
            tenant: replace(budget, name="tenant") for tenant, budget in self.config.tenants.items()
        }
        self._clock = clock
        self._numbers = itertools.count(1)
        self._driver: Driver | None = None
        self._places: Places | None = None
        self._shares: Shares | None = None
        self._watcher: Watcher | None = None
        self._pressure: PsiSource | None = None
        self._kernel: KernelSide | None = None
        self.host = Budget("host")
        self._notes: tuple[str, ...] = ()

    @property
    def learner(self) -> Learner:
        """What was learned of calls so far."""
        return self._ledger.learner

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the configuration is not in force here, and why."""
        return self._notes if self._places is None else (*self._notes, *self._places.notes)

    @property
    def is_open(self) -> bool:
        """Whether calls can be governed: there are cgroups to govern them in."""
        return self._driver is not None

    def open(self, tree: CgroupTree) -> None:
        """Begin to govern the calls of ``tree``. Blocking; does nothing where no cgroup works."""
        if self._driver is not None or not tree.branches:
            return
        memory = self.config.memory or int(HOST_SHARE * psutil.virtual_memory().available)
        self.host = Budget("host", memory, float(len(os.sched_getaffinity(0))))
        top = tree.place().control
        carrier = top.carrier("memory")
        on_v2 = carrier is not None and carrier.hierarchy.version == 2
        driver = Driver(self._controller_config(memory, top, on_v2), self._clock)
        if self.config.memory is not None and (said := top.set_max(memory)):
            self._notes = (*self._notes, f"host budget: {said}")
        driver.budget_group(top)
        driver.start()
        self._driver = driver
        self._places = Places(self.config, tree, driver)
        self._shares = Shares(tree)
        self._watch(top, driver)

    def _controller_config(self, memory: int, top: Control, on_v2: bool) -> ControllerConfig:
        can_freeze = top.v2 is not None
        known: dict[str, Any] = {
            "memory": memory,
            "tenants": {
                name: budget.memory
                for name, budget in self.config.tenants.items()
                if budget.memory is not None
            },
            "tenant_memory": self.config.tenant.memory,
            "program_memory": self.config.program.memory,
            "can_freeze": can_freeze,
            "can_throttle": on_v2,
            "can_reclaim": on_v2,
        }
        if not can_freeze:
            known["overcommit"] = 0.0  # nobody can be made to wait once it runs
        return ControllerConfig(**{**known, **self.config.controller})

    def _watch(self, top: Control, driver: Driver) -> None:
        """Be woken by the kernel, beside looking by ourselves."""
        path = top.pressure_path("memory")
        if path is None:
            self._notes = (*self._notes, "pressure: the kernel reports none, usage is sampled")
            return
        self._watcher = Watcher()
        try:
            self._pressure = watch_pressure(self._watcher, path, lambda _: driver.pressure())
        except OSError as error:
            self._notes = (*self._notes, f"pressure: {error.strerror}, usage is sampled")
        if self.config.sensors and top.v2 is not None:
            self._kernel = KernelSide(self._watcher, top.v2, driver.pressure)
            self._notes = (*self._notes, *self._kernel.notes)

    # --- one call ---

    async def admit(self, info: CallInfo) -> Governed:
        """Work out the limits of a call and wait until it may start.

        Raises:
            ToolNotStarted: it was refused: it waited too long, or its deadline passed.
        """
        envelope = self.envelope(info)
        call = f"{info.program}#{next(self._numbers)}"
        spec = envelope.spec(call, info.tenant, info.program, self._clock())
        ticket = Ticket(spec, on_progress=info.on_progress)
        governed = Governed(info, envelope, ticket)
        if self._driver is None:
            ticket.admit(spec.claim, 0)
            return governed
        self._driver.request(ticket)
        try:
            await ticket.decided()
            if not ticket.admitted or ticket.killed:
                why = ticket.refused or ticket.killed
                raise ToolNotStarted(
                    f"The tool call was not started: {why}.",
                    remedy="Declare less memory for it, or try again when others have ended.",
                )
        except BaseException:
            self._driver.ended(ticket)
            raise
        return governed

    def envelope(self, info: CallInfo) -> Envelope:
        """The limits that a call would get."""
        kind = command_kind(info.command)
        estimate = self.learner.estimate(tool_name(info.command), kind, info.repository)
        return make_envelope(
            info.intent,
            estimate,
            self._budgets_of(info.tenant),
            hard_memory=info.hard_memory,
            hard_cpu=info.hard_cpu,
            hard_pids=info.hard_pids,
            oom_group=self.config.oom_group,
        )

    def _budgets_of(self, tenant: str) -> tuple[Budget, ...]:
        return self._program_budget, self._tenant_budgets.get(tenant, self._any_tenant), self.host

    def started(self, governed: Governed, group: ToolGroup) -> None:
        """The call's cgroup is made: set what is beside the plain limits, and look after it.

        Raises:
            ToolNotStarted: it was killed meanwhile, as for its deadline.
        """
        ticket, control = governed.ticket, group.control
        governed.cgroup = str(control.v2 or next(iter(group.paths), ""))
        governed.unenforced = governed.set_beside(control)
        if self._shares is not None:
            ticket.on_weight = functools.partial(self._shares.put, ticket.call, group)
            ticket.on_weight(governed.envelope.cpu_weight)
        governed.stalled = control.stalled() or 0.0
        ticket.kill_group = group.kill
        self._observe(governed, group)
        if self._driver is not None:
            self._driver.attach(ticket, control)
        if ticket.killed:
            raise ToolNotStarted(
                f"The tool call was killed before it ran: {ticket.killed}.",
                remedy="Give it a later deadline.",
            )

    def _observe(self, governed: Governed, group: ToolGroup) -> None:
        """Collect the kernel's events of the call, and take its network if it asked for none."""
        control = group.control
        if self._kernel is None or control.v2 is None:
            return
        governed.cgroup_id = control.v2.stat().st_ino
        self._kernel.begin(governed.cgroup_id)
        if governed.info.intent.network == "none":
            group.retire()  # no later call may meet a network policy of this one
            governed.offline = not self._kernel.take_network(control.v2)

    def frozen_seconds(self, governed: Governed) -> float:
        """How long the call has stood still: time that does not count against its time limit."""
        return 0.0 if self._driver is None else self._driver.frozen_seconds(governed.ticket)

    def measure(self, governed: Governed, group: ToolGroup) -> None:
        """Read what goes with the cgroup, before it is removed."""
        governed.stalled = max(0.0, (group.control.stalled() or 0.0) - governed.stalled)
        governed.throttled = group.control.cpu_throttled() or 0.0

    def ended(self, governed: Governed, ending: Ending | None) -> Feedback | None:
        """The call is over. ``ending`` is ``None`` when it was cancelled: nothing is learned."""
        ticket, driver = governed.ticket, self._driver
        report = driver.ended(ticket) if driver is not None else None
        if self._shares is not None:
            self._shares.drop(ticket.call)
        if self._kernel is not None and governed.cgroup_id:
            governed.seen = self._kernel.end(governed.cgroup_id)
        if ending is None:
            return None
        enforced = governed.envelope.memory_max is not None and self._driver is not None
        limit = ticket.limit if ticket.spec.enforced else governed.envelope.memory_max
        ending = replace(
            ending,
            memory_limit=limit if enforced else None,
            pids_limit=governed.envelope.pids_max,
            memory_stalled=governed.stalled,
            cpu_throttled=governed.throttled,
            killed=ticket.killed,
            killed_for=ticket.killed_for,
        )
        feedback = make_feedback(
            ending, governed.envelope, report, ticket.winner, governed.info.notes
        )
        self._ledger.enter(governed, ending, feedback)
        return feedback

    # --- programs ---

    def budget_place(self, tenant: str, program: str) -> str:
        """Where a program's cgroups go; sets the budgets of the inner directories once. Blocking.

        Raises:
            OSError: a directory could not be made.
        """
        if self._places is None:
            return program_place(tenant, program)
        return self._places.budget(tenant, program)

    def framework(self, tenant: str, program: str, pid: int) -> str:
        """Put a program's agent process in a cgroup beside its tool calls. Blocking.

        Its memory is reclaimed while the program's turns run, where the host can. Returns an empty
        string, or why it could not be moved.
        """
        if self._places is None:
            return "no cgroup can be made here"
        return self._places.framework(tenant, program, pid)

    def turn(self, program: str, started: bool) -> None:
        """A program's turn began or ended: its framework is idle in between."""
        if self._places is not None:
            self._places.turn(program, started)

    def program_ended(self, tenant: str, program: str) -> None:
        """Remove a program's directories. Blocking; what still runs there stays."""
        if self._places is not None:
            self._places.ended(tenant, program)

    def statistics(self) -> ControllerStatistics | None:
        """The controller's figures; ``None`` where nothing can be governed."""
        return None if self._driver is None else self._driver.statistics()

    def sensor_statistics(self) -> SensorStatistics | None:
        """Kernel events delivered and lost; ``None`` without sensors."""
        return None if self._kernel is None else self._kernel.statistics()

    def restart(self) -> None:
        """Replace the controller by a new one, which adopts every call that runs or waits."""
        if self._driver is not None:
            self._driver.restart()

    def close(self) -> None:
        """Stop governing; whatever is frozen goes on. Idempotent, blocking."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        if self._pressure is not None:
            self._pressure.close()
            self._pressure = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._places is not None:
            self._places.close()
            self._places = None
        if self._driver is not None:
            self._driver.close()
            self._driver = None
