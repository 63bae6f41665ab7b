"""The policy that is agentrt itself: its driver and controller, each replay a tool call to them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace

from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.curves import Role
from agentrt.bench.contention.policies import Policy, Setting
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.driver import Driver
from agentrt.resources.envelope import Budget, Envelope, make_envelope
from agentrt.resources.intent import Intent
from agentrt.resources.learned import Learner
from agentrt.resources.pressure import PsiSource, watch_pressure
from agentrt.resources.tickets import Progress, Ticket
from agentrt.resources.watch import Watcher

__all__ = ["Governed"]

LOOK_FOR_ADMISSION = 0.01


class Governed(Policy):
    """Every replay declares its peak as its intent, and to be killed if it needs more than that."""

    name = "agentrt"
    period = LOOK_FOR_ADMISSION

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._tickets: dict[str, Ticket] = {}
        self._waiting: list[str] = []
        self._progress: list[tuple[str, Progress]] = []
        self._driver: Driver | None = None
        self._watcher: Watcher | None = None
        self._source: PsiSource | None = None

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        usual = ControllerConfig(memory=self.setting.limit)
        config = ControllerConfig(
            memory=self.setting.limit,
            thaw_room=int(usual.thaw_room * self.setting.scale),
            keep_whole=int(usual.keep_whole * self.setting.scale),
            can_throttle=arena.on_v2,
        )
        self._driver = driver = Driver(config)
        driver.budget_group(arena.parent)
        driver.start()
        path = arena.parent.pressure_path("memory")
        if path is not None:
            self._watcher = Watcher()
            self._source = watch_pressure(self._watcher, path, lambda _: driver.pressure())
        for role in self.setting.roles:
            self._prepare(role, arena)

    def _prepare(self, role: Role, arena: Arena) -> None:
        envelope = self._envelope(role)
        assert envelope.memory_max is not None
        arena.set_max(role.name, envelope.memory_max)
        arena.control(role.name).set_weight(envelope.cpu_weight)
        self._tickets[role.name] = Ticket(
            envelope.spec(role.name, "default", role.name, 0.0),
            kill_group=arena.groups[role.name].kill,
            on_progress=functools.partial(self._note, role.name),
        )

    def _note(self, name: str, progress: Progress) -> None:
        self._progress.append((name, progress))

    def _envelope(self, role: Role) -> Envelope:
        intent = Intent(
            memory=self.setting.peaks[role.name], priority=role.priority, on_limit="kill"
        )
        usual = Learner().estimate("replay", "run", "")
        estimate = replace(usual, typical=int(usual.typical * self.setting.scale))
        return make_envelope(intent, estimate, [Budget("host", memory=self.setting.limit)])

    def begin(self, now: float) -> Sequence[str]:
        assert self._driver is not None
        for name, ticket in self._tickets.items():
            self._driver.request(ticket)
            self._waiting.append(name)
        return self._admitted()

    def tick(self, now: float) -> Sequence[str]:
        return self._admitted()

    def ended(self, name: str, now: float) -> Sequence[str]:
        assert self._driver is not None
        self._driver.ended(self._tickets.pop(name))
        return self._admitted()

    def _admitted(self) -> list[str]:
        assert self._driver is not None
        ready = [name for name in self._waiting if self._tickets[name].admitted]
        for name in ready:
            self._waiting.remove(name)
            self._driver.attach(self._tickets[name], self.arena.control(name))
        return ready

    def statistics(self) -> dict[str, object]:
        assert self._driver is not None
        self._driver.check_integrity()
        return asdict(self._driver.statistics()) | {
            "health": self._driver.health,
            "progress": list(self._progress),
        }

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        if self._watcher is not None:
            self._watcher.close()
        if self._driver is not None:
            self._driver.close()

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return (
            "the controller of agentrt: admission by reservation, then freezing before anything is "
            "killed; every replay declares its peak, and the high priority goes first on the CPUs"
        )
