"""Tenants: weights, quotas, and what each of them has right now.

A quota holds a tenant's own turns back and nobody else's: they wait in the queue, where metrics
show them, and others pass, even while the engine has nothing else to do. Like every admission it
yields to the waiting bound: a turn aged past ``max_wait`` starts. Where a turn would wait longer
than its tenant may queue, or its tenant's places in the queue are taken, ``refusal`` tells the HTTP
edge to answer 429.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import (
    Admission,
    AdmitAll,
    Listener,
    Policy,
    PoolView,
    ProgramView,
    TurnView,
    Verdict,
)

__all__ = ["TenantBook", "TenantSettings", "TenantStatistics", "parse_tenants", "with_quotas"]

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """What an operator grants a tenant; None: no bound.

    Args:
        weight: its share of the engine beside other tenants' that have work, above 0.
        tokens_per_minute: prompt tokens that are computed (not found in the cache) and output
            tokens; what is not used up adds up for one minute.
        programs: how many may be under way at a time.
        kv_share: the part of the page pool that its running turns and pins may hold, above 0 to 1.
        queue: how many turns may wait; more are refused.
        queue_seconds: how long a turn may wait for tokens; where it is longer, it is refused.
    """

    weight: float = 1.0
    tokens_per_minute: int | None = None
    programs: int | None = None
    kv_share: float | None = None
    queue: int | None = None
    queue_seconds: float = 60.0

    def __post_init__(self) -> None:
        whole = (self.tokens_per_minute, self.programs, self.queue)
        share = 1.0 if self.kv_share is None else self.kv_share
        if not (
            0 < self.weight < math.inf
            and all(value is None or (type(value) is int and value >= 1) for value in whole)
            and 0 < share <= 1
            and self.queue_seconds >= 0
        ):
            raise ConfigError(
                f"A tenant's settings are out of range: {self}.",
                remedy="Use weight above 0, whole numbers of at least 1, 0 < kv_share <= 1.",
            )


DEFAULT = TenantSettings()


def parse_tenants(tables: Mapping[str, Any], *, where: str) -> dict[str, TenantSettings]:
    """Return tenants' settings from the tables ``[tenants.NAME]`` of a configuration file.

    Raises:
        ConfigError: a field is not known or out of range; ``where`` names the file.
    """
    known = {one.name for one in fields(TenantSettings)}
    found: dict[str, TenantSettings] = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping) or (wrong := table.keys() - known):
            problem = ", ".join(sorted(wrong)) if isinstance(table, Mapping) else "is no table"
            raise ConfigError(
                f"{where}, [tenants.{name}]: {problem}.",
                remedy=f"A tenant has the fields {', '.join(sorted(known))}.",
            )
        try:
            found[name] = TenantSettings(**table)
        except TypeError as error:
            raise ConfigError(
                f"{where}, [tenants.{name}]: a value is of the wrong type: {error}.",
                remedy="Give numbers.",
            ) from error
    return found


@dataclass(frozen=True, slots=True)
class TenantStatistics:
    """A tenant now (turns, programs) and since the start (tokens, turns held back)."""

    running: int
    waiting: int
    programs: int
    prefilled_tokens: int
    output_tokens: int
    turns_finished: int
    held_back: int


@dataclass(slots=True)
class _Tenant:
    settings: TenantSettings
    level: float = 0.0
    since: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    programs: dict[str, ProgramView] = field(default_factory=dict)
    under_way: set[str] = field(default_factory=set)
    prefilled: int = 0
    output: int = 0
    finished: int = 0
    held: set[str] = field(default_factory=set)
    held_back: int = 0

    def spend(self, tokens: int, now: float) -> None:
        """Take tokens; the account may go below 0, and then nothing starts before it is at 0."""
        self.refill(now)
        self.level -= tokens

    def refill(self, now: float) -> None:
        rate = self.settings.tokens_per_minute
        if rate is not None:
            self.level = min(float(rate), self.level + (now - self.since) * rate / MINUTE)
        self.since = max(self.since, now)

    def seconds_short(self, now: float) -> float:
        """Return in how many seconds a turn may start, as far as tokens go."""
        rate = self.settings.tokens_per_minute
        if rate is None:
            return 0.0
        self.refill(now)
        return max(0.0, -self.level) * MINUTE / rate


class TenantBook(Listener):
    """Keeps account of tenants, and holds back turns that are over quota: an admission.

    Args:
        settings: by tenant; one that is missing has no quota.
        inner: is asked about turns that are within it.
    """

    def __init__(
        self, settings: Mapping[str, TenantSettings], inner: Admission | None = None
    ) -> None:
        self._settings = dict(settings)
        self._inner = inner or AdmitAll()
        self._tenants: dict[str, _Tenant] = {}

    # -- Admission -----------------------------------------------------------------------------

    def verdict(self, turn: TurnView, pool: PoolView, now: float) -> Verdict:
        """Return ``hold`` for a turn over its tenant's quota: others pass it."""
        tenant = self._tenant(turn.tenant)
        if not self._within(tenant, turn, pool, now):
            tenant.held.add(turn.turn_id)
            return "hold"
        return self._inner.verdict(turn, pool, now)

    def _within(self, tenant: _Tenant, turn: TurnView, pool: PoolView, now: float) -> bool:
        limits = tenant.settings
        begins = turn.program_id not in tenant.under_way
        if limits.programs is not None and begins and len(tenant.under_way) >= limits.programs:
            return False
        if tenant.seconds_short(now) > 0:
            return False
        if limits.kv_share is None or not tenant.running:
            # What has nothing running starts: a quota never wedges its tenant.
            return True
        needed = turn.prompt_tokens + turn.max_output
        return self._held_tokens(tenant, turn) + needed <= limits.kv_share * pool.capacity

    @staticmethod
    def _held_tokens(tenant: _Tenant, turn: TurnView) -> int:
        """Tokens of the tenant's running turns and pins, without the turn's own context."""
        pins = sum(
            context.length
            for program in tenant.programs.values()
            for context in program.contexts.values()
            if context.pinned and context is not turn.state
        )
        return pins + sum(most for _, most in tenant.running.values())

    def next_change(self, now: float) -> float | None:
        """Return when a tenant that waits has tokens again, or what the inner admission says."""
        times = [
            now + seconds
            for tenant in self._tenants.values()
            if tenant.waiting and (seconds := tenant.seconds_short(now)) > 0
        ]
        inner = self._inner.next_change(now)
        return min(times + ([] if inner is None else [inner]), default=None)

    # -- Listener ------------------------------------------------------------------------------

    def submitted(self, turn: TurnView, now: float) -> None:
        """Count a turn as waiting."""
        tenant = self._tenant(turn.tenant, now)
        tenant.waiting[turn.turn_id] = now
        tenant.programs[turn.program_id] = turn.program

    def started(self, turn: TurnView, now: float) -> None:
        """Take the tokens that are to be computed from the tenant's account."""
        tenant = self._tenant(turn.tenant)
        tenant.waiting.pop(turn.turn_id, None)
        if turn.turn_id in tenant.held:
            tenant.held.remove(turn.turn_id)
            tenant.held_back += 1
        fresh = turn.length - turn.computed
        tenant.running[turn.turn_id] = (turn.output, turn.prompt_tokens + turn.max_output)
        tenant.under_way.add(turn.program_id)
        tenant.prefilled += fresh
        tenant.spend(fresh, now)

    def preempted(self, turn: TurnView, now: float) -> None:
        """Take what it put out; it waits again."""
        tenant = self._tenant(turn.tenant)
        self._leave(tenant, turn, now)
        tenant.waiting[turn.turn_id] = now

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Take what it put out."""
        tenant = self._tenant(turn.tenant)
        tenant.finished += 1
        tenant.held.discard(turn.turn_id)
        if turn.turn_id in tenant.running:
            self._leave(tenant, turn, now)
        else:
            tenant.waiting.pop(turn.turn_id, None)

    def _leave(self, tenant: _Tenant, turn: TurnView, now: float) -> None:
        output = turn.output - tenant.running.pop(turn.turn_id)[0]
        tenant.output += output
        tenant.spend(output, now)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Let another program of the tenant begin."""
        tenant = self._tenant(program.tenant)
        if tenant.programs.get(program.program_id) is program:
            del tenant.programs[program.program_id]
            tenant.under_way.discard(program.program_id)

    # -- what others ask -----------------------------------------------------------------------

    def _tenant(self, name: str, now: float = 0.0) -> _Tenant:
        found = self._tenants.get(name)
        if found is None:
            settings = self._settings.get(name, DEFAULT)
            full = float(settings.tokens_per_minute or 0)
            found = self._tenants[name] = _Tenant(settings, full, now)
        return found

    def refusal(self, name: str, now: float) -> float | None:
        """Return after how many seconds to try again if no turn of the tenant may queue now.

        It changes nothing and may be asked from another thread: a turn more or less is let through.
        """
        tenant = self._tenants.get(name)
        if tenant is None:
            return None
        limits, rate = tenant.settings, tenant.settings.tokens_per_minute
        short = 0.0
        if rate is not None:
            short = max(0.0, -tenant.level * MINUTE / rate - (now - tenant.since))
        if short > limits.queue_seconds:
            return short - limits.queue_seconds
        if limits.queue is not None and len(tenant.waiting) >= limits.queue:
            return max(short, 1.0)
        return None

    def statistics(self) -> dict[str, TenantStatistics]:
        """Return every tenant's account by name."""
        return {
            name: TenantStatistics(
                running=len(one.running),
                waiting=len(one.waiting),
                programs=len(one.under_way),
                prefilled_tokens=one.prefilled,
                output_tokens=one.output,
                turns_finished=one.finished,
                held_back=one.held_back + len(one.held),
            )
            for name, one in list(self._tenants.items())
        }


def with_quotas(
    policy: Policy, settings: Mapping[str, TenantSettings]
) -> tuple[Policy, TenantBook]:
    """Return ``policy`` within the tenants' quotas, and the book that keeps account of them."""
    book = TenantBook(settings, policy.admission)
    return replace(policy, admission=book, listeners=(book, *policy.listeners)), book
