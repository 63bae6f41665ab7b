"""The controller's settings, and its figures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentrt.errors import ConfigError
from agentrt.resources.control_budget import Budgets

__all__ = ["ControllerConfig", "ControllerStatistics"]

MIB = 1 << 20


@dataclass(frozen=True)
class ControllerConfig:
    """What the controller may give, and how patient it is. Bytes and seconds.

    Args:
        memory: what all tool calls together may use.
        tenants, tenant_memory, program_memory: budgets of single tenants, of each other tenant, of
            each program; none means no limit of their own.
        margin: bytes kept free against growth that is seen too late; ``None`` takes 1.1 % of
            ``memory``, at most 64 MiB.
        horizon: how far to look ahead: the time from an event to the end of a freeze.
        keep_before, keep_after: share of what a more important call may still use that others leave
            free, before and after that call has shown its peak.
        keep_whole: so many bytes of it are left free before its peak, whatever that share. What is
            small can be claimed before anybody could give way; what is large takes its time.
        overcommit: share of ``memory`` by which the claims of live calls may exceed it: the part
            that is borrowed. 0 starts only what can be reserved in full.
        thaw_room: a frozen call is thawed when it can grow this much (or to its claim).
        max_freeze: longest freeze by priority (low, normal, high). After it the call goes first.
        max_wait: a waiting call older than this is overtaken by nobody.
        refuse_after: a waiting call older than this is refused.
        stall_deadline: longest time that a call is slowed down at a limit.
        reclaim_share: share of an idle framework's memory that is asked back during a turn.
        max_calls: live calls at most.
        can_freeze, can_throttle, can_reclaim: whether the host has ``cgroup.freeze``,
            ``memory.high`` and ``memory.reclaim``. Without freezing, use an overcommit of 0.
    """

    memory: int
    tenants: Mapping[str, int] = field(default_factory=dict)
    tenant_memory: int | None = None
    program_memory: int | None = None
    margin: int | None = None
    horizon: float = 0.01
    keep_before: float = 0.8
    keep_after: float = 0.05
    keep_whole: int = 256 * MIB
    overcommit: float = 0.25
    thaw_room: int = 8 * MIB
    max_freeze: tuple[float, float, float] = (60.0, 30.0, 5.0)
    max_wait: float = 30.0
    refuse_after: float = 600.0
    stall_deadline: float = 10.0
    reclaim_share: float = 0.5
    max_calls: int = 1024
    can_freeze: bool = True
    can_throttle: bool = False
    can_reclaim: bool = False

    def __post_init__(self) -> None:
        if self.memory < MIB or self.horizon <= 0 or self.overcommit < 0:
            raise ConfigError(
                "The controller's budget, horizon or share is out of range.",
                remedy="Give it at least 1 MiB, a positive horizon and an overcommit of 0 or more.",
            )
        if min(self.max_freeze) <= 0 or min(self.max_wait, self.stall_deadline) < 0:
            raise ConfigError(
                "A bound of the controller is not positive.", remedy="Use seconds > 0."
            )

    @functools.cached_property
    def budgets(self) -> Budgets:
        """The budgets as the decisions use them."""
        return Budgets(self.memory, self.tenants, self.tenant_memory, self.program_memory)

    def kept_before(self, owed: int) -> int:
        """What of the ``owed`` bytes others leave free before a call's peak."""
        whole = min(owed, self.keep_whole)
        return whole + int(self.keep_before * (owed - whole))

    @property
    def spare(self) -> int:
        """The margin in bytes."""
        return min(64 * MIB, self.memory // 90) if self.margin is None else self.margin


@dataclass(frozen=True, slots=True)
class ControllerStatistics:
    """Gauges (now) and counters (since start). Bytes; ``overhead`` is used by no live call."""

    budget: int
    reserved: int
    borrowed: int
    used: int
    overhead: int
    running: int
    frozen: int
    waiting: int
    admitted: int
    ended: int
    refused: int
    killed: int
    freezes: int
    throttles: int
    reclaims: int
    lent: int
    weight_cuts: int = 0
