"""The policy that is agentrt itself: its controller decides, each replay is a tool call to it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.policies import Policy, Setting
from agentrt.resources import control_events as ev
from agentrt.resources.controller import Controller, ControllerConfig

__all__ = ["Governed"]

WEIGHTS = {"high": 1000, "low": 100}
PRIORITIES = {"high": ev.HIGH, "low": ev.LOW}


class Governed(Policy):
    """Every replay declares its peak, as a tool call's intent does."""

    name = "agentrt"
    period = 0.002

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        config = ControllerConfig(memory=setting.limit)
        self._controller = Controller(config)
        self._released: list[str] = []
        self._late: list[float] = []
        self._last = 0.0

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        for role in self.setting.roles:
            arena.set_weight(role.name, WEIGHTS[role.priority])

    def begin(self, now: float) -> Sequence[str]:
        self._last = now
        for role in self.setting.roles:
            spec = ev.CallSpec(
                call=role.name,
                claim=self.setting.peaks[role.name],
                priority=PRIORITIES[role.priority],
                program=role.name,
            )
            self._send(ev.Requested(spec), now)
        return self._take()

    def tick(self, now: float) -> Sequence[str]:
        self._late.append(now - self._last)
        self._last = now
        names = [role.name for role in self.setting.roles]
        usage = {name: self.arena.usage(name) for name in names}
        self._send(ev.Sample(usage=usage, total=self.arena.usage()), now)
        return self._take()

    def ended(self, name: str, now: float) -> Sequence[str]:
        self._send(ev.Ended(name), now)
        return self._take()

    def _take(self) -> list[str]:
        taken, self._released = self._released, []
        return taken

    def _send(self, event: ev.Event, now: float) -> None:
        for action in self._controller.handle(event, now):
            self._perform(action, now)

    def _perform(self, action: ev.Action, now: float) -> None:
        match action:
            case ev.Admit(call):
                self._released.append(call)
                self._send(ev.Started(call), now)
            case ev.Freeze(call):
                self.arena.freeze(call, True)
            case ev.Thaw(call):
                self.arena.freeze(call, False)
            case ev.Kill(call):
                self.arena.groups[call].kill()
            case _:
                pass

    def statistics(self) -> dict[str, object]:
        told = asdict(self._controller.statistics())
        return told | {
            "tick_p50": statistics.median(self._late),
            "tick_max": max(self._late),
        }

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return (
            "the controller of agentrt: admission by reservation, then freezing before anything is "
            "killed; every replay declares its peak, and the high priority goes first on the CPUs"
        )
