"""The policy that is agentrt itself: its controller decides, each replay is a tool call to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict

from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.policies import USUAL_SPEED, Policy, Setting
from agentrt.resources import control_events as ev
from agentrt.resources.controller import Controller, ControllerConfig

__all__ = ["Governed"]

WEIGHTS = {"high": 1000, "low": 100}
PRIORITIES = {"high": ev.HIGH, "low": ev.LOW}
LEAST_PERIOD, MOST_PERIOD = 0.002, 0.05


class Governed(Policy):
    """Every replay declares its peak, as a tool call's intent does."""

    name = "agentrt"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        slower = USUAL_SPEED / setting.speed
        self.period = min(MOST_PERIOD, max(LEAST_PERIOD, LEAST_PERIOD * slower))
        self._released: list[str] = []
        self._gaps: list[float] = []
        self._costs: list[float] = []
        self._last = 0.0

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        usual = ControllerConfig(memory=self.setting.limit)
        self._controller = Controller(
            ControllerConfig(
                memory=self.setting.limit,
                horizon=max(usual.horizon, 5 * self.period),
                thaw_room=int(usual.thaw_room * self.setting.scale),
                can_throttle=arena.on_v2,
            )
        )
        for role in self.setting.roles:
            arena.control(role.name).set_weight(WEIGHTS[role.priority])
            arena.set_max(role.name, self.setting.peaks[role.name])

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
        self._gaps.append(now - self._last)
        self._last = now
        usage = {role.name: self.arena.usage(role.name) for role in self.setting.roles}
        self._send(ev.Sample(usage=usage, total=self.arena.usage()), now)
        self._costs.append(time.monotonic() - now)
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
                self.arena.control(call).freeze(True)
            case ev.Thaw(call):
                self.arena.control(call).freeze(False)
            case ev.Kill(call):
                self.arena.groups[call].kill()
            case ev.SetMax(call, limit):
                self.arena.set_max(call, limit)
            case ev.SetHigh(call, limit):
                self.arena.set_high(call, limit)
            case ev.SetWeight(call, weight):
                self.arena.control(call).set_weight(weight)
            case ev.Wait() | ev.Refuse() | ev.Reclaim():
                pass  # The first says what is so; the others cannot be: no limit on patience here.

    def statistics(self) -> dict[str, object]:
        told = asdict(self._controller.statistics())
        if self._gaps:
            told["look_seconds"] = {
                "p50": statistics.median(self._gaps),
                "max": max(self._gaps),
                "cost_p50": statistics.median(self._costs),
            }
        return told

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return (
            "the controller of agentrt: admission by reservation, then freezing before anything is "
            "killed; every replay declares its peak, and the high priority goes first on the CPUs"
        )
