"""What a governor is told, and what it knows of one call: plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrt.resources.cgroup import Control, block_device
from agentrt.resources.envelope import Budget, Envelope
from agentrt.resources.intent import NOTHING, Intent
from agentrt.resources.kernel_side import CallEvents
from agentrt.resources.tickets import Progress, Ticket

__all__ = ["CallInfo", "Governed", "GovernorConfig"]


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
    intent: Intent = NOTHING
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

    def set_beside(self, control: Control) -> tuple[str, ...]:
        """Set weight, burst, soft limit, group kill and I/O; return what was asked and is not."""
        envelope = self.envelope
        out: list[str] = []
        if envelope.memory_high is not None:
            control.set_high(envelope.memory_high)
        control.set_oom_group(envelope.oom_group)
        said = control.set_weight(envelope.cpu_weight)
        if said and self.info.intent.priority is not None:
            out.append(f"priority: {said}.")
        if envelope.cpu_max is not None:
            control.set_cpu(envelope.cpu_max, envelope.cpu_burst)
        if envelope.io_max is not None:
            device = block_device(self.info.workdir or Path("/"))
            said = "no disk below the work directory"
            if device is not None:
                said = control.set_io(device, envelope.io_max)
            if said:
                out.append(f"io: {said}.")
        return tuple(out)
