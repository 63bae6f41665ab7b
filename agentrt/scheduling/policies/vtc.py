"""VTC: a virtual token counter for each client; the client with the least is served first.

Source: Sheng et al., OSDI'24 (Ying1123/VTC-artifact). ``c_u`` rises by ``w_in`` for each input
token when a request starts and by ``w_out`` for each output token as it comes, both over the
client's weight. A client that had nothing waiting is lifted to the least counter of those that
have; if there is none, to that of the client whose request left the queue last. Two clients that
both have requests waiting all the time differ by at most ``2 max(w_in L_in, w_out M)``, with
``L_in`` the longest input and ``M`` the most output tokens that can run at once.

A client is a tenant here. The paper's engine caches no prefixes: an input token that the cache
holds is not charged, because it is not computed. Inside a tenant turns go by arrival; eviction is
LRU.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentrt.scheduling.fairness import TenantClock
from agentrt.scheduling.plan import FinishReason
from agentrt.scheduling.policy import KeepNothing, Policy, TurnView, by_arrival, lru_score
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["TokenCounters", "vtc"]


class TokenCounters(TenantClock):
    """Counters as published: output is charged when it comes."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self._running: set[str] = set()

    def started(self, turn: TurnView, now: float) -> None:
        """Charge the input tokens that are to be computed."""
        tenant = self.tenants[turn.tenant]
        tenant.waiting -= 1
        self._running.add(turn.turn_id)
        tenant.charge(self.cost.of(turn.length - turn.computed, 0))
        self._last = tenant.time

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Charge the output of a step."""
        if decoded:
            self.tenants[turn.tenant].charge(self.cost.of(0, decoded))

    def preempted(self, turn: TurnView, now: float) -> None:
        """Let it wait again; what it was charged stays."""
        self._running.discard(turn.turn_id)
        self._enter(turn)

    def ended(self, turn: TurnView, reason: FinishReason, now: float) -> None:
        """Forget the turn."""
        if turn.turn_id in self._running:
            self._running.remove(turn.turn_id)
        else:
            self.tenants[turn.tenant].waiting -= 1


def vtc(around: Surroundings) -> Policy:
    """Return VTC with the tenants' weights."""
    counters = TokenCounters(around.tenants)
    return Policy("vtc", by_arrival, KeepNothing(lru_score), groups=counters, listeners=(counters,))
