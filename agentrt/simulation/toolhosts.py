"""Where tool calls run in a simulation: hosts with so many slots and so much memory.

A call that finds no slot or no memory waits at its program's host, first come first served, and
then takes its recorded time: tool gaps stretch when hosts are full.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from agentrt.errors import ConfigError, InternalError
from agentrt.simulation.programs import ProgramRun

__all__ = ["ToolCall", "ToolHosts", "ToolStatistics"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The tool calls after a turn of ``program``: ``memory`` bytes, asked for at ``since``."""

    program: str
    turn_id: str
    memory: int
    run: ProgramRun
    since: float


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """``waited`` calls found no room at once; together they waited ``wait_seconds``."""

    calls: int
    waited: int
    wait_seconds: float
    longest_wait: float


@dataclass(slots=True)
class _Host:
    slots: float
    memory: float
    programs: int = 0
    running: dict[str, ToolCall] = field(default_factory=dict)
    queue: deque[ToolCall] = field(default_factory=deque)
    used: int = 0

    def fits(self, call: ToolCall) -> bool:
        """A call larger than the host runs there alone: it could never run otherwise."""
        room = self.used + call.memory <= self.memory or not self.running
        return len(self.running) < self.slots and room


class ToolHosts:
    """``hosts`` machines, each with ``slots`` calls at once and ``memory`` bytes for them.

    A program's sandbox is on one host: the one with the fewest programs when it first needs one.
    None stands for no limit.
    """

    def __init__(self, hosts: int, slots: int | None, memory: int | None) -> None:
        if hosts < 1 or (slots is not None and slots < 1) or (memory is not None and memory < 1):
            raise ConfigError(
                f"{hosts} tool hosts with {slots} slots and {memory} bytes cannot run anything.",
                remedy="Give hosts, --tool-slots and --tool-memory numbers above 0.",
            )
        room = (math.inf if slots is None else slots, math.inf if memory is None else memory)
        self._hosts = [_Host(*room) for _ in range(hosts)]
        self._homes: dict[str, _Host] = {}
        self._running_on: dict[str, _Host] = {}
        self._calls = self._waited = 0
        self._wait_seconds = self._longest = 0.0

    def begin(self, call: ToolCall) -> bool:
        """Start a call, or queue it; whether it runs now."""
        host = self._home(call.program)
        self._calls += 1
        if host.queue or not host.fits(call):
            self._waited += 1
            host.queue.append(call)
            return False
        self._start(host, call)
        return True

    def end(self, call: ToolCall, now: float) -> list[ToolCall]:
        """End a call that runs; return the calls that start in its place."""
        host = self._running_on.pop(call.turn_id, None)
        if host is None or host.running.pop(call.turn_id, None) is None:
            raise InternalError(f"{call.turn_id} has no tool call that could end.")
        host.used -= call.memory
        started: list[ToolCall] = []
        while host.queue and host.fits(host.queue[0]):
            waiting = host.queue.popleft()
            self._start(host, waiting)
            self._wait_seconds += now - waiting.since
            self._longest = max(self._longest, now - waiting.since)
            started.append(waiting)
        return started

    def forget(self, program: str) -> None:
        """Remove an ended program's sandbox."""
        host = self._homes.pop(program, None)
        if host is not None:
            host.programs -= 1

    def _home(self, program: str) -> _Host:
        host = self._homes.get(program)
        if host is None:
            host = min(self._hosts, key=lambda one: one.programs)
            host.programs += 1
            self._homes[program] = host
        return host

    def _start(self, host: _Host, call: ToolCall) -> None:
        self._running_on[call.turn_id] = host
        host.running[call.turn_id] = call
        host.used += call.memory

    def statistics(self) -> ToolStatistics:
        """Return counters."""
        return ToolStatistics(self._calls, self._waited, self._wait_seconds, self._longest)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if a host runs more than it has room for."""
        for host in self._hosts:
            used = sum(call.memory for call in host.running.values())
            alone = len(host.running) == 1
            if used != host.used or len(host.running) > host.slots:
                raise InternalError(f"A host counts {host.used} bytes; its calls hold {used}.")
            if used > host.memory and not alone:
                raise InternalError(f"A host of {host.memory} bytes runs calls of {used}.")
