"""A machine for the controller, simulated: tool calls that follow memory curves under one limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrt.resources import control_events as ev
from agentrt.resources.controller import Controller, ControllerConfig

MIB = 1 << 20
Curve = Sequence[tuple[float, int]]
"""Seconds of the call's own clock, bytes from then on."""


@dataclass
class Tool:
    """A call that follows a curve; its own clock stands still while it is frozen or grows."""

    spec: ev.CallSpec
    curve: Curve
    arrival: float = 0.0
    usage: int = 0
    clock: float = 0.0
    state: str = "new"
    started: float = 0.0
    ended: float = 0.0
    frozen: float = 0.0
    why: str = ""

    def step(self, seconds: float, bandwidth: float) -> None:
        """Grow towards the curve at the machine's bandwidth, or go on along it."""
        if self.state == "frozen":
            self.frozen += seconds
        if self.state != "running":
            return
        target = next(b for t, b in reversed(self.curve) if t <= self.clock)
        if self.usage < target:
            self.usage = min(target, self.usage + int(bandwidth * seconds))
        else:
            self.usage = target
            self.clock += seconds

    @property
    def over(self) -> bool:
        return self.clock >= self.curve[-1][0]


@dataclass
class Plant:
    """Runs tools under a controller in virtual time.

    ``reaction`` is the time between two samples, and again between an action and its effect.
    Without a controller, the kernel kills the largest call when the limit is exceeded.
    """

    config: ControllerConfig
    tools: list[Tool]
    bandwidth: float = 1.0 * (1 << 30)
    step: float = 0.002
    reaction: float = 0.004
    governed: bool = True
    now: float = 0.0
    actions: list[tuple[float, ev.Action]] = field(default_factory=list)
    pending: list[tuple[float, ev.Action]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.controller = Controller(self.config)
        self.by_name = {tool.spec.call: tool for tool in self.tools}

    def run(self, limit: float) -> None:
        """Run until every tool has ended, at most ``limit`` seconds."""
        sampled = -1.0
        while any(tool.state != "over" for tool in self.tools) and self.now < limit:
            self._arrivals()
            self._effects()
            self._advance()
            self._out_of_memory()
            if self.governed and self.now - sampled >= self.reaction:
                sampled = self.now
                self.send(ev.Sample({t.spec.call: t.usage for t in self.tools if t.usage}))
            self.now = round(self.now + self.step, 9)

    def send(self, event: ev.Event) -> None:
        """Hand an event in; its actions take effect one reaction later."""
        found = self.controller.handle(event, self.now)
        self.controller.check_integrity()
        self.actions += [(self.now, action) for action in found]
        self.pending += [(self.now + self.reaction, action) for action in found]
        due = self.controller.next_deadline(self.now)
        assert due is None or due > self.now

    def _arrivals(self) -> None:
        for tool in self.tools:
            if tool.state == "new" and tool.arrival <= self.now:
                tool.state = "waiting" if self.governed else "running"
                tool.started = self.now
                if self.governed:
                    self.send(ev.Requested(tool.spec))

    def _effects(self) -> None:
        while self.pending and self.pending[0][0] <= self.now:
            _, action = self.pending.pop(0)
            name = getattr(action, "call", None)
            tool = self.by_name.get(name) if name is not None else None
            if tool is None or tool.state == "over":
                continue
            if isinstance(action, ev.Admit):
                tool.state, tool.started = "running", self.now
                self.send(ev.Started(tool.spec.call))
            elif isinstance(action, ev.Freeze):
                tool.state = "frozen"
            elif isinstance(action, ev.Thaw):
                tool.state = "running"
            elif isinstance(action, (ev.Kill, ev.Refuse)):
                assert action.why
                self._finish(tool, f"{type(action).__name__}: {action.why}")

    def _advance(self) -> None:
        for tool in self.tools:
            tool.step(self.step, self.bandwidth)
            if tool.state == "running" and tool.over:
                self._finish(tool, "")

    def _out_of_memory(self) -> None:
        while sum(tool.usage for tool in self.tools) > self.config.memory:
            biggest = max(self.tools, key=lambda tool: tool.usage)
            self._finish(biggest, "out of memory")

    def _finish(self, tool: Tool, why: str) -> None:
        refused = tool.state == "waiting"
        tool.state, tool.usage, tool.ended, tool.why = "over", 0, self.now, why
        if self.governed and not refused:
            self.send(ev.Ended(tool.spec.call))

    def durations(self) -> dict[str, float]:
        return {tool.spec.call: tool.ended - tool.started for tool in self.tools}
