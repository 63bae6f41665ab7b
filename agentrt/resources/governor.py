"""Governs the tool calls of one runtime: intents in, limits and feedback out, one controller.

intent ─► envelope ─► driver.request ─► (waits) ─► cgroup with its limits ─► runs ─► feedback
             ▲                                                                │
             └───────────────────── learned from what it used ◄───────────────┘
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from agentrt.errors import ToolNotStarted
from agentrt.resources.cgroup import CgroupTree, Control, ToolGroup, block_device
from agentrt.resources.cgroup.names import program_place
from agentrt.resources.control_config import ControllerConfig, ControllerStatistics
from agentrt.resources.driver import Driver
from agentrt.resources.envelope import Budget, Envelope, make_envelope
from agentrt.resources.feedback import Ending, Feedback, make_feedback, record
from agentrt.resources.frameworks import Framework, homes, move
from agentrt.resources.intent import Intent
from agentrt.resources.kernel_side import CallEvents, KernelSide
from agentrt.resources.learned import Learner, Observation, command_kind, tool_name
from agentrt.resources.pressure import PsiSource, watch_pressure
from agentrt.resources.sensors import SensorStatistics
from agentrt.resources.tickets import Progress, Ticket
from agentrt.resources.watch import Watcher

__all__ = ["CallInfo", "Governed", "Governor", "GovernorConfig"]

log = logging.getLogger(__name__)

HOST_SHARE = 0.8
"""Share of the memory that is available at the start which tool calls may use in all."""


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """Budgets and habits.

    Args:
        memory: bytes for all tool calls; ``None`` takes 80 % of what is available at the start.
        tenants, tenant: budgets of single tenants, and of every other one. A budget bounds each
            call, and its ``memory`` also all calls of the tenant together.
        program: budget of every program, likewise.
        learn: learn what calls need that do not say it.
        oom_group: an OOM kill takes the whole tool call (on v2) rather than one process of it.
        sensors: load the BPF sensors and egress hooks where they load; ``notes`` says where not.
        log: a file that gets one JSON line for each tool call.
        on_call: called with the same record, from the event loop's thread; must return quickly.
        controller: further settings of ``ControllerConfig`` by name.
    """

    memory: int | None = None
    tenants: Mapping[str, Budget] = field(default_factory=dict)
    tenant: Budget = field(default_factory=lambda: Budget("tenant"))
    program: Budget = field(default_factory=lambda: Budget("program"))
    learn: bool = True
    oom_group: bool = True
    sensors: bool = True
    log: Path | None = None
    on_call: Callable[[dict[str, Any]], None] | None = None
    controller: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Who calls what, and what is declared. ``hard_*`` are the sandbox's own limits."""

    command: str
    tenant: str = "default"
    program: str = "program"
    repository: str = ""
    intent: Intent = field(default_factory=Intent)
    notes: tuple[str, ...] = ()
    hint: str = ""
    hard_memory: int | None = None
    hard_cpu: float | None = None
    hard_pids: int | None = None
    workdir: Path | None = None
    on_progress: Callable[[Progress], None] = lambda _: None


@dataclass(slots=True)
class Governed:
    """A call that was admitted: its limits, and what to tell about it at the end."""

    info: CallInfo
    envelope: Envelope
    ticket: Ticket
    unenforced: tuple[str, ...] = ()
    stalled: float = 0.0
    throttled: float = 0.0
    cgroup: str = ""
    cgroup_id: int = 0
    offline: bool = False
    """The kernel refuses the call every connection."""
    seen: CallEvents | None = None
    """What the sensors saw of it; ``None`` without sensors."""


class Governor:
    """Admits, limits and accounts for tool calls. ``open`` it over a run's tree, ``close`` it."""

    def __init__(
        self, config: GovernorConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config or GovernorConfig()
        self.learner = Learner()
        self._clock = clock
        self._numbers = itertools.count(1)
        self._driver: Driver | None = None
        self._tree: CgroupTree | None = None
        self._watcher: Watcher | None = None
        self._pressure: PsiSource | None = None
        self._kernel: KernelSide | None = None
        self._budgeted: set[str] = set()
        self._frameworks: dict[str, Framework] = {}
        self.host = Budget("host")
        self.notes: tuple[str, ...] = ()

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
        self._tree = tree
        top = tree.place().control
        carrier = top.carrier("memory")
        on_v2 = carrier is not None and carrier.hierarchy.version == 2
        driver = Driver(self._controller_config(memory, top, on_v2), self._clock)
        if self.config.memory is not None and (said := top.set_max(memory)):
            self.notes = (*self.notes, f"host budget: {said}")
        driver.budget_group(top)
        driver.start()
        self._driver = driver
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
            self.notes = (*self.notes, "pressure: the kernel reports none, usage is sampled")
            return
        self._watcher = Watcher()
        try:
            self._pressure = watch_pressure(self._watcher, path, lambda _: driver.pressure())
        except OSError as error:
            self.notes = (*self.notes, f"pressure: {error.strerror}, usage is sampled")
        if self.config.sensors and top.v2 is not None:
            self._kernel = KernelSide(self._watcher, top.v2, driver.pressure)
            self.notes = (*self.notes, *self._kernel.notes)

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
        tenant = self.config.tenants.get(info.tenant, self.config.tenant)
        budgets = (
            replace(self.config.program, name="program"),
            replace(tenant, name="tenant"),
            self.host,
        )
        return make_envelope(
            info.intent,
            estimate,
            budgets,
            hard_memory=info.hard_memory,
            hard_cpu=info.hard_cpu,
            hard_pids=info.hard_pids,
            oom_group=self.config.oom_group,
        )

    def started(self, governed: Governed, group: ToolGroup) -> None:
        """The call's cgroup is made: set what is beside the plain limits, and look after it.

        Raises:
            ToolNotStarted: it was killed meanwhile, as for its deadline.
        """
        ticket, control = governed.ticket, group.control
        governed.cgroup = str(control.v2 or next(iter(group.paths), ""))
        governed.unenforced = tuple(self._set(governed, control))
        governed.stalled = control.stalled() or 0.0
        ticket.kill_group = group.kill
        self._observe(governed, control)
        if self._driver is not None:
            self._driver.attach(ticket, control)
        if ticket.killed:
            raise ToolNotStarted(
                f"The tool call was killed before it ran: {ticket.killed}.",
                remedy="Give it a later deadline.",
            )

    def _observe(self, governed: Governed, control: Control) -> None:
        """Collect the kernel's events of the call, and take its network if it asked for none."""
        if self._kernel is None or control.v2 is None:
            return
        governed.cgroup_id = control.v2.stat().st_ino
        self._kernel.begin(governed.cgroup_id)
        if governed.info.intent.network == "none":
            governed.offline = not self._kernel.take_network(control.v2)

    def _set(self, governed: Governed, control: Control) -> list[str]:
        """Set weight, burst, soft limit, group kill and I/O; return what was asked and is not."""
        envelope, declared = governed.envelope, governed.info.intent
        out: list[str] = []
        if envelope.memory_high is not None:
            control.set_high(envelope.memory_high)
        control.set_oom_group(envelope.oom_group)
        said = control.set_weight(envelope.cpu_weight)
        if said and declared.priority is not None:
            out.append(f"priority: {said}.")
        if envelope.cpu_max is not None:
            control.set_cpu(envelope.cpu_max, envelope.cpu_burst)
        if envelope.io_max is not None:
            device = block_device(governed.info.workdir or Path("/"))
            said = "no disk below the work directory"
            if device is not None:
                said = control.set_io(device, envelope.io_max)
            if said:
                out.append(f"io: {said}.")
        return out

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
        self._learn(governed, ending, feedback)
        self._log(governed, ending, feedback)
        return feedback

    def _learn(self, governed: Governed, ending: Ending, feedback: Feedback) -> None:
        if not self.config.learn or ending.peak_memory is None:
            return
        command = governed.info.command
        seconds = max(0.0, ending.duration - feedback.frozen)
        complete = not (ending.oom_kills or ending.timed_out or ending.killed)
        used = Observation(ending.peak_memory, seconds, complete)
        kind, repository = command_kind(command), governed.info.repository
        self.learner.observe(tool_name(command), kind, repository, used)

    def _log(self, governed: Governed, ending: Ending, feedback: Feedback) -> None:
        if self.config.log is None and self.config.on_call is None:
            return
        line = record(
            feedback,
            wall=time.time(),
            pid=os.getpid(),
            cgroup=governed.cgroup,
            command=governed.info.command,
            ending=ending,
            hint=governed.info.hint,
        )
        if governed.seen is not None:
            line["events"] = dict(governed.seen.counts)
            line["connects"] = governed.seen.connects
        if self.config.on_call is not None:
            self.config.on_call(line)
        if self.config.log is not None:
            try:
                with open(self.config.log, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(line) + "\n")
            except OSError as error:
                log.warning("cannot write %s: %s", self.config.log, error)

    # --- programs ---

    def budget_place(self, tenant: str, program: str) -> str:
        """Where a program's cgroups go; sets the budgets of the inner directories once. Blocking.

        Raises:
            OSError: a directory could not be made.
        """
        place = program_place(tenant, program)
        if self._tree is None or place in self._budgeted:
            return place
        self._budgeted.add(place)
        budget = self.config.tenants.get(tenant, self.config.tenant)
        parts = ((place.partition("/")[0], budget), (place, self.config.program))
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
        """Put a program's agent process in a cgroup beside its tool calls. Blocking.

        Its memory is reclaimed while the program's turns run, where the host can. Returns an empty
        string, or why it could not be moved.
        """
        if self._tree is None or self._driver is None:
            return "no cgroup can be made here"
        try:
            origin = homes(pid, self._tree.layout)
            group = self._tree.framework(self.budget_place(tenant, program))
            move(pid, group.procs)
        except OSError as error:
            return f"{error.strerror or error}"
        if program not in self._frameworks:
            self._frameworks[program] = Framework(group, pid, origin)
        self._driver.framework(program, group.control)
        return ""

    def turn(self, program: str, started: bool) -> None:
        """A program's turn began or ended: its framework is idle in between."""
        if self._driver is not None and program in self._frameworks:
            self._driver.turn(program, started)

    def program_ended(self, tenant: str, program: str) -> None:
        """Remove a program's directories. Blocking; what still runs there stays."""
        if self._tree is None:
            return
        place = program_place(tenant, program)
        if self._driver is not None:
            self._driver.framework(program, None)
        framework = self._frameworks.pop(program, None)
        if framework is not None:
            framework.release()
        self._budgeted.discard(place)
        self._tree.drop_place(place)

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
        for framework in self._frameworks.values():
            framework.release()
        self._frameworks.clear()
        if self._driver is not None:
            self._driver.close()
            self._driver = None
