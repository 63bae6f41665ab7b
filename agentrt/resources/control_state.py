"""Pure: what the controller remembers of one tool call, and how far it may grow before we react."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.resources.control_events import CallSpec

__all__ = ["CallReport", "CallState", "LiveCall"]

CallState: TypeAlias = Literal["waiting", "admitted", "running", "frozen", "killed"]
HeldFor: TypeAlias = Literal["room", "limit"]
"""A frozen call waits for others to shrink, or for its own claim to be raised."""
RATE_HALF_LIFE = 0.1
"""Seconds after which a growth rate that is not seen again counts half."""
PEAK_SHARE = 0.8
DOWN_SHARE = 0.95
"""A call that used ``PEAK_SHARE`` of its claim and fell below this share of that had its peak."""
TOP_SHARE = 0.87
"""Above this share of its claim a call is in its top part: it is let in only with room for all."""


@dataclass(frozen=True, slots=True)
class CallReport:
    """What the controller did to one call. Bytes and seconds."""

    state: CallState
    claim: int
    lent: int
    usage: int
    peak: int
    waited: float
    frozen: float
    freezes: int
    throttled: float
    winner: str | None


class LiveCall:
    """One call from its request to its end. Mutable; owned by the controller."""

    def __init__(self, spec: CallSpec, now: float, number: int) -> None:
        self.spec = spec
        self.number = number
        self.state: CallState = "waiting"
        self.claim = spec.claim
        self.ceiling = max(spec.ceiling, spec.claim)
        self.soft = min(spec.soft or spec.claim, spec.claim)
        self.reserved = 0
        self.usage = 0
        self.peak = 0
        self.rate = 0.0
        self.sampled = now
        self.requested = now
        self.changed = now
        self.waited = 0.0
        self.frozen_total = 0.0
        self.freezes = 0
        self.freeze_until = 0.0
        self.high: int | None = None
        self.high_since = 0.0
        self.high_deadline = 0.0
        self.throttled_total = 0.0
        self.winner: str | None = None
        self.hungry_since: float | None = None
        self.held_for: HeldFor | None = None
        self.aged_until = 0.0
        self.stalled = 0.0
        self.told: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return (
            f"<LiveCall {self.spec.call} {self.state} {self.usage >> 20}/{self.claim >> 20} MiB "
            f"reserved {self.reserved >> 20}>"
        )

    @property
    def live(self) -> bool:
        """Whether it holds memory: admitted and not yet ended."""
        return self.state != "waiting"

    @property
    def borrowed(self) -> int:
        """The part of its claim that nothing is reserved for."""
        return max(0, self.claim - self.reserved) if self.live else 0

    @property
    def need(self) -> int:
        """How much more it may claim."""
        return max(0, self.claim - self.usage)

    @property
    def peak_seen(self) -> bool:
        """Whether it has come near its claim once, and down again."""
        return self.peak >= PEAK_SHARE * self.claim and self.usage < DOWN_SHARE * self.peak

    @property
    def on_top(self) -> bool:
        """Whether it uses the top part of its claim now."""
        return self.usage > TOP_SHARE * self.claim

    def sample(self, usage: int, now: float) -> None:
        """Take note of its usage; the rate rises at once and decays slowly."""
        passed = now - self.sampled
        if passed > 0:
            grown = (usage - self.usage) / passed
            self.rate = max(grown, self.rate * 0.5 ** (passed / RATE_HALF_LIFE), 0.0)
            self.sampled = now
        self.usage = usage
        self.peak = max(self.peak, usage)
        if usage > self.claim and not self.spec.enforced:
            # An estimate was too low: what is used is claimed.
            self.claim = min(self.ceiling, usage)
            self.soft = max(self.soft, self.claim)

    def growth(self, horizon: float) -> int:
        """Bytes that it may add within ``horizon`` seconds, by its present rate and its claim."""
        most = self.need if self.spec.enforced else max(0, self.ceiling - self.usage)
        return min(most, int(self.rate * horizon))

    def wish(self, horizon: float) -> int:
        """Bytes that it would use in ``horizon`` seconds, whatever its claim."""
        return self.usage + int(self.rate * horizon)

    def freeze(self, now: float, until: float, winner: str | None, why: HeldFor) -> None:
        """It stops now."""
        self.held_for = why
        self.state, self.changed = "frozen", now
        self.freezes += 1
        self.freeze_until = until
        self.winner = winner

    def thaw(self, now: float) -> None:
        """It goes on; it stood still, so what it did before says nothing of its rate."""
        self.frozen_total += now - self.changed
        self.state, self.changed, self.held_for = "running", now, None
        self.rate, self.sampled = 0.0, now

    def throttle(self, limit: int | None, now: float, deadline: float) -> None:
        """Its throttle limit is set or lifted."""
        if self.high is not None:
            self.throttled_total += now - self.high_since
        self.high, self.high_since, self.high_deadline = limit, now, deadline

    def report(self, now: float) -> CallReport:
        """What was done to it so far."""
        frozen = self.frozen_total + (now - self.changed if self.state == "frozen" else 0.0)
        throttled = self.throttled_total + (now - self.high_since if self.high is not None else 0.0)
        waited = now - self.requested if self.state == "waiting" else self.waited
        return CallReport(
            state=self.state,
            claim=self.claim,
            lent=max(0, self.claim - self.spec.claim),
            usage=self.usage,
            peak=self.peak,
            waited=waited,
            frozen=frozen,
            freezes=self.freezes,
            throttled=throttled,
            winner=self.winner,
        )
