"""The policies that the experiment compares: each decides who may begin, and what is limited."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.curves import Role, Scenario
from agentrt.errors import ConfigError

__all__ = ["POLICIES", "Policy", "Setting", "Unmanaged", "explain", "policy_class", "policy_names"]

MIB = 1 << 20
USUAL_SPEED = 50.0
"""Times as fast as recorded: a load that is played more slowly is also looked at less often."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may know: the scenario, the limit and peaks in bytes, speed and scale.

    ``peaks`` are what a program would declare, by role: its curve's peak, the base, and the
    interpreter. Policies that need no declaration do not look at them.
    """

    scenario: Scenario
    limit: int
    speed: float
    scale: float
    peaks: Mapping[str, int]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles, the one of high priority first."""
        return self.scenario.roles

    def names(self, priority: str) -> list[str]:
        """Names of the roles of one priority."""
        return [role.name for role in self.roles if role.priority == priority]


class Policy(ABC):
    """One run's policy. Called from one thread, in this order: prepare, begin, then the rest."""

    name = ""
    period = math.inf
    """Seconds between two calls of ``tick``; inf: never."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self, arena: Arena) -> None:
        """Set limits; the interpreters have started and hold almost nothing."""
        self.arena = arena

    def begin(self, now: float) -> Sequence[str]:
        """Return who begins at once."""
        return [role.name for role in self.setting.roles]

    def tick(self, now: float) -> Sequence[str]:
        """Look and act; return who may begin now."""
        return ()

    def ended(self, name: str, now: float) -> Sequence[str]:
        """A replay is gone; return who may begin now."""
        return ()

    def statistics(self) -> dict[str, object]:
        """What it did, for the record of the run."""
        return {}

    def close(self) -> None:  # noqa: B027  most policies hold nothing
        """Let go of everything but the cgroups; idempotent."""

    @classmethod
    @abstractmethod
    def explain(cls, on_v2: bool) -> str:
        """One sentence: what it does here, and what this machine's cgroups change about it."""


class Unmanaged(Policy):
    """The parent's limit alone: the kernel kills the largest when it is reached."""

    name = "none"

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return "only the parent's limit; the kernel kills when it is reached"


class Static(Policy):
    """The limit in equal parts, as containers get them."""

    name = "static"

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        share = self.setting.limit // len(self.setting.roles)
        for role in self.setting.roles:
            arena.set_max(role.name, share)

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return "each replay limited to an equal part of the parent's limit"


class Protection(Policy):
    """memory.low for the high priority, memory.high for the low ones, set once."""

    name = "memory.low+high"

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        low_high = int(self.setting.scenario.low_high * self.setting.scale)
        for name in self.setting.names("low"):
            (arena.set_high if arena.on_v2 else arena.set_soft)(name, low_high)
        if arena.on_v2:
            for name in self.setting.names("high"):
                arena.set_low(name, self.setting.limit)

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        if on_v2:
            return "memory.low protects the high priority, memory.high slows the low ones"
        return (
            "cgroup v1 has neither: soft limits for the low ones, which act only when the whole "
            "machine is short; so it equals none here"
        )


class Serialise(Policy):
    """The high priority alone, then the low ones together: what AgentCgroup's delay amounts to."""

    name = "serialise"

    def begin(self, now: float) -> Sequence[str]:
        return self.setting.names("high")

    def ended(self, name: str, now: float) -> Sequence[str]:
        return self.setting.names("low") if name in self.setting.names("high") else ()

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return "the low priorities begin when the high one has ended"


class OomdLike(Policy):
    """A daemon that kills by pressure or use, after systemd-oomd.

    Its times are divided by the replay's speed, as the load is. Killed is the largest of the lowest
    priority: the real one would go by the pressure that a cgroup causes, and knows no priorities.
    """

    name = "oomd-like"
    period = 0.01
    PRESSURE = 0.60
    """Share of the time that all of the group stood waiting for memory."""
    PRESSURE_SECONDS = 30.0
    USE = 0.95
    """Share of the limit in use; systemd-oomd looks at swap, of which there is none here."""

    def prepare(self, arena: Arena) -> None:
        super().prepare(arena)
        self.kills: list[str] = []
        self._calm_since: tuple[float, float] | None = None
        self._waiting_for: str | None = None

    def tick(self, now: float) -> Sequence[str]:
        if self._waiting_for is not None and self.arena.groups[self._waiting_for].populated():
            return ()
        self._waiting_for = None
        if self._under_pressure(now) or self.arena.usage() > self.USE * self.setting.limit:
            self._kill()
        return ()

    def _under_pressure(self, now: float) -> bool:
        stalled = self.arena.stall()
        if stalled is None:
            return False
        window = self.PRESSURE_SECONDS / self.setting.speed
        begun, before = self._calm_since or (now, stalled)
        if self._calm_since is None or now - begun >= window:
            self._calm_since = (now, stalled)
        return now - begun >= window and stalled - before > self.PRESSURE * (now - begun)

    def _kill(self) -> None:
        groups = self.arena.groups
        alive = [name for name in self.setting.names("low") if groups[name].populated()]
        if not alive:
            return
        victim = max(alive, key=self.arena.usage)
        groups[victim].kill()
        self.kills.append(victim)
        self._waiting_for = victim

    def statistics(self) -> dict[str, object]:
        return {"kills": list(self.kills)}

    @classmethod
    def explain(cls, on_v2: bool) -> str:
        return (
            f"kills the largest low priority at {cls.USE:.0%} of the limit, or when all stood "
            f"still for {cls.PRESSURE:.0%} of {cls.PRESSURE_SECONDS:.0f} s (divided by the speed)"
        )


def _governed() -> type[Policy]:
    from agentrt.bench.contention.governed import Governed

    return Governed


_SIMPLE = (Unmanaged, Static, Protection, OomdLike, Serialise)
POLICIES = (*(one.name for one in _SIMPLE), "agentrt")
"""Names in the order of every table."""


def policy_class(name: str) -> type[Policy]:
    """Return the policy's class; the controller is imported only where it is asked for."""
    return {one.name: one for one in _SIMPLE}.get(name) or _governed()


def explain(name: str, on_v2: bool) -> str:
    """Return what a policy does here in one sentence."""
    return policy_class(name).explain(on_v2)


def policy_names(text: str) -> list[str]:
    """Return the policies of a comma-separated list, or all of them for ``all``.

    Raises:
        ConfigError: one is not known, or there is none.
    """
    if text.strip() == "all":
        return list(POLICIES)
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        known = ", ".join(POLICIES)
        raise ConfigError(
            f"There is no policy {unknown[0]!r}." if unknown else "No policy was named.",
            remedy=f"Choose from: {known}, or all.",
        )
    return names
