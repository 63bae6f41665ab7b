"""Fair shares: tenants by virtual time, above whatever order a policy has inside a tenant.

Service is counted in tokens: ``prefill`` for each one that is computed before the first output
token (what the cache holds costs nothing) and ``output`` for each one put out, 1 and 2 as in VTC
(OSDI'24). A tenant's virtual time is its service over its weight; the waiting tenant with the least
goes first. A tenant that had nothing waiting is lifted to the least of those that have, so that
nobody saves up service by being idle.

``TenantClock`` charges a turn's expected service when it starts and settles the difference when it
ends. VTC charges output as it comes: then every seat that is free while a tenant is behind goes to
it, and turns of many steps make the shares swing. Charged ahead, seats are taken in proportion.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import Listener, Policy, TurnView

__all__ = ["ServiceCost", "Tenant", "TenantClock", "by_tenants"]

OUTPUT_DECAY = 0.9
"""Of the running mean of a tenant's outputs, for each turn that ends."""


@dataclass(frozen=True, slots=True)
class ServiceCost:
    """Service of a prefilled and of an output token (``w_in``, ``w_out`` in VTC)."""

    prefill: float = 1.0
    output: float = 2.0

    def of(self, prefilled: int, output: int) -> float:
        """Return the service of so many tokens."""
        return self.prefill * prefilled + self.output * output


@dataclass(slots=True)
class Tenant:
    """One tenant: its virtual time, service so far, turns that wait, mean output of a turn."""

    name: str
    weight: float
    time: float = 0.0
    service: float = 0.0
    waiting: int = 0
    mean_output: float | None = None

    def charge(self, service: float) -> None:
        """Book service, or give back what was booked too much."""
        self.service += service
        self.time += service / self.weight

    def learn(self, output: int) -> None:
        """Note the output of a turn that ended."""
        old = self.mean_output
        self.mean_output = (
            float(output) if old is None else OUTPUT_DECAY * old + (1 - OUTPUT_DECAY) * output
        )


@dataclass(slots=True)
class _Charge:
    """What a running turn was charged, and what it had when it started."""

    service: float
    computed: int
    fresh: int
    output: int


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights that are not above 0.

    Raises:
        ConfigError: one is not.
    """
    for tenant, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"The tenant {tenant!r} has the weight {weight}.",
                remedy="Give every tenant a weight above 0.",
            )


class TenantClock(Listener):
    """Virtual times of tenants; hand it to a policy as ``groups`` and among its ``listeners``.

    Args:
        weights: of tenants by name; one that is missing has weight 1.
        cost: what a token counts.

    Raises:
        ConfigError: a weight is not above 0.
    """

    def __init__(self, weights: Mapping[str, float], cost: ServiceCost | None = None) -> None:
        check_weights(weights)
        self._weights = dict(weights)
        self.cost = cost or ServiceCost()
        self.tenants: dict[str, Tenant] = {}
        self._charges: dict[str, _Charge] = {}
        self._last = 0.0

    # -- Groups --------------------------------------------------------------------------------

    def group(self, turn: TurnView) -> Hashable:
        """Return the turn's tenant."""
        return turn.tenant

    def key(self, group: Hashable) -> float:
        """Return a tenant's virtual time: the least goes first."""
        return self.tenants[str(group)].time

    # -- Listener ------------------------------------------------------------------------------

    def submitted(self, turn: TurnView, now: float) -> None:
        """Lift a tenant that had nothing waiting."""
        self._enter(turn)

    def preempted(self, turn: TurnView, now: float) -> None:
        """Settle what the turn had; it waits again."""
        self._settle(turn)
        self._enter(turn)

    def started(self, turn: TurnView, now: float) -> None:
        """Charge what the turn is expected to take."""
        tenant = self.tenants[turn.tenant]
        tenant.waiting -= 1
        self._last = max(self._last, tenant.time)
        fresh = turn.length - turn.computed
        service = self.cost.of(fresh, self.expected_output(turn))
        tenant.charge(service)
        self._charges[turn.turn_id] = _Charge(service, turn.computed, fresh, turn.output)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Settle what the turn had, and learn how much it put out."""
        tenant = self.tenants[turn.tenant]
        if turn.turn_id not in self._charges:
            tenant.waiting -= 1
            return
        self._settle(turn)
        tenant.learn(turn.output)

    # -- parts ---------------------------------------------------------------------------------

    def expected_output(self, turn: TurnView) -> int:
        """Return how many more tokens a turn will put out: as hinted, or as its tenant's do."""
        left = turn.max_output - turn.output
        hinted = turn.hints.output_tokens
        mean = self.tenants[turn.tenant].mean_output
        if hinted is not None:
            return min(left, max(0, hinted - turn.output))
        return left if mean is None else min(left, max(0, round(mean) - turn.output))

    def charged(self, turn: TurnView) -> float:
        """Return what a running turn was charged ahead; 0 for one that waits."""
        charge = self._charges.get(turn.turn_id)
        return 0.0 if charge is None else charge.service

    def _tenant(self, name: str) -> Tenant:
        found = self.tenants.get(name)
        if found is None:
            found = self.tenants[name] = Tenant(name, self._weights.get(name, 1.0))
        return found

    def _enter(self, turn: TurnView) -> None:
        """Count a turn as waiting; lift its tenant if it is the first one."""
        tenant = self._tenant(turn.tenant)
        if tenant.waiting == 0:
            others = [one.time for one in self.tenants.values() if one.waiting]
            tenant.time = max(tenant.time, min(others, default=self._last))
        tenant.waiting += 1

    def _settle(self, turn: TurnView) -> None:
        charge = self._charges.pop(turn.turn_id)
        prefilled = max(0, min(turn.computed - charge.computed, charge.fresh))
        had = self.cost.of(prefilled, turn.output - charge.output)
        self.tenants[turn.tenant].charge(had - charge.service)


def by_tenants(policy: Policy, weights: Mapping[str, float]) -> Policy:
    """Return ``policy`` with fair shares of tenants above its own order.

    Raises:
        ConfigError: a weight is not above 0.
    """
    clock = TenantClock(weights)
    return replace(policy, groups=clock, listeners=(clock, *policy.listeners))
