"""Pure: budgets of host, tenants and programs, and whether all calls can still end within them.

A state is *safe* when some order exists in which every call gets all that it claims, ends, and
gives its memory to the rest (Dijkstra's banker). Freezing is what makes a call wait its turn. While
the state is safe nobody ever has to be killed, as long as claims are enforced by the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentrt.resources.control_state import LiveCall

__all__ = ["HOST", "Budgets", "safe_order"]

HOST = "host"


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that tool calls may use: in all, by tenant, by program. No entry means no own limit."""

    host: int
    tenants: Mapping[str, int]
    tenant_default: int | None = None
    program_default: int | None = None

    def limits(self, call: LiveCall) -> Iterable[tuple[str, int]]:
        """The limits that ``call`` counts against, by scope."""
        yield HOST, self.host
        tenant = self.tenants.get(call.spec.tenant, self.tenant_default)
        if tenant is not None:
            yield f"tenant:{call.spec.tenant}", tenant
        if self.program_default is not None:
            yield f"program:{call.spec.tenant}/{call.spec.program}", self.program_default

    def most(self, call: LiveCall) -> int:
        """The most that this call could ever be given."""
        return min(limit for _, limit in self.limits(call))

    def free(self, calls: Sequence[LiveCall], used: Mapping[str, int]) -> dict[str, int]:
        """What is left in each scope when the calls use ``used`` (by call id); may be negative."""
        left: dict[str, int] = {}
        for call in calls:
            for scope, limit in self.limits(call):
                left[scope] = left.get(scope, limit) - used[call.spec.call]
        return left

    def room(self, call: LiveCall, left: Mapping[str, int]) -> int:
        """How much more ``call`` can have, given what is left in each scope."""
        return min(left.get(scope, limit) for scope, limit in self.limits(call))


def safe_order(
    budgets: Budgets, calls: Sequence[LiveCall], used: Mapping[str, int], overhead: int = 0
) -> list[LiveCall] | None:
    """An order in which all calls can reach their claims and end, or ``None`` if there is none.

    ``calls`` in order of preference: of those that could end next, the first is taken. ``overhead``
    is what others use of the host's budget.
    """
    left = budgets.free(calls, used)
    if HOST in left:
        left[HOST] -= overhead
    if _all_fit(budgets, calls, used, left):
        return list(calls)  # the usual case, and a cheap one
    waiting, order = list(calls), list[LiveCall]()
    while waiting:
        ready = next((c for c in waiting if _need(c, used) <= budgets.room(c, left)), None)
        if ready is None:
            return None
        waiting.remove(ready)
        order.append(ready)
        for scope, _ in budgets.limits(ready):
            left[scope] += used[ready.spec.call]
    return order


def _all_fit(
    budgets: Budgets, calls: Sequence[LiveCall], used: Mapping[str, int], left: Mapping[str, int]
) -> bool:
    after = dict(left)
    for call in calls:
        for scope, _ in budgets.limits(call):
            after[scope] -= _need(call, used)
    return min(after.values(), default=0) >= 0


def _need(call: LiveCall, used: Mapping[str, int]) -> int:
    return max(0, call.claim - used[call.spec.call])
