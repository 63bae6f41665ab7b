"""Pins: leases that outlive their turn for a while, and how each of them ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from agentrt.scheduling.kv import KVCache, KVLease
from agentrt.scheduling.plan import PinEnded, PinOutcome
from agentrt.scheduling.state import ContextState, Pin

__all__ = ["PinBook"]


class PinBook:
    """All live pins. A context has at most one; the pages under pins stay below ``max_pages``.

    A run shared by two pins is counted for both, so ``pages`` is an upper bound of what is held.
    """

    def __init__(self, kv: KVCache, max_pages: int, emit: Callable[[PinEnded], None]) -> None:
        self._kv = kv
        self._max_pages = max_pages
        self._emit = emit
        self._pins: dict[ContextState, Pin] = {}
        self.pages = 0
        self.outcomes: Counter[PinOutcome] = Counter()

    def __len__(self) -> int:
        return len(self._pins)

    def add(self, context: ContextState, lease: KVLease, ttl: float, now: float) -> bool:
        """Turn a lease into a pin, keeping its published pages. False: the share is used up."""
        self.end(context, "handed_off", now)
        if lease.shared == 0 or self.pages + lease.shared > self._max_pages:
            return False
        self._kv.trim(lease)
        pin = Pin(context, lease, now, ttl, lease.shared * self._kv.page_size)
        self._pins[context] = context.pin = pin
        self.pages += lease.shared
        return True

    def end(self, context: ContextState, outcome: PinOutcome, now: float) -> bool:
        """End a context's pin, if it has one; its pages stay cached until evicted."""
        pin = self._pins.pop(context, None)
        if pin is None:
            return False
        context.pin = None
        self.pages -= pin.lease.shared
        self._kv.release(pin.lease, now)
        self.outcomes[outcome] += 1
        program = context.program.program_id
        self._emit(PinEnded(program, context.name, pin.start, now, pin.ttl, pin.tokens, outcome))
        return True

    def supersede(self, context: ContextState, keys: Sequence[Hashable], now: float) -> None:
        """Let go of the part of a pin that the context's next prompt no longer continues."""
        pin = context.pin
        agreeing = self._kv.match(keys) if pin is not None else 0
        if pin is None or agreeing >= pin.lease.shared:
            return
        lease = self._kv.acquire(context.owner, keys[:agreeing], agreeing, now)
        if lease is None or agreeing == 0:
            self.end(context, "final", now)
            if lease is not None:
                self._kv.release(lease, now)
            return
        self.pages += lease.shared - pin.lease.shared
        self._kv.release(pin.lease, now)
        pin.lease = lease

    def expire(self, now: float) -> bool:
        """End the pins whose time is over and whose context is not back; whether there were any."""
        due = [pin for pin in self._pins.values() if pin.expiry <= now and not self._kept(pin)]
        for pin in due:
            self.end(pin.context, "expired", max(pin.expiry, pin.start))
        return bool(due)

    @staticmethod
    def _kept(pin: Pin) -> bool:
        """A context that is back and waits keeps its pin until it is admitted."""
        return pin.context.waiting_turns > 0

    def victim(self, beneficiary: ContextState) -> ContextState | None:
        """Choose the pin to break: the latest program's; the beneficiary's own only at the end."""
        if not self._pins:
            return None
        return max(
            self._pins,
            key=lambda context: (
                context is not beneficiary,
                context.program.arrival,
                self._pins[context].start,
            ),
        )

    def next_expiry(self) -> float | None:
        """Return when the next pin expires, if no context comes back before."""
        return min((pin.expiry for pin in self._pins.values() if not self._kept(pin)), default=None)

    def leases(self) -> list[KVLease]:
        """Return the leases held by pins."""
        return [pin.lease for pin in self._pins.values()]
