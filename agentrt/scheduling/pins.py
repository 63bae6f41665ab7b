"""Pins: leases that outlive their turn for a while, and how each of them ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heappush

from agentrt.scheduling.kv import KVCache, KVLease
from agentrt.scheduling.plan import PinEnded, PinOutcome
from agentrt.scheduling.state import ContextState, Pin

__all__ = ["PinBook"]

SHORTEST_EXTENSION = 1e-3
"""Seconds: time must pass before a pin is asked about again."""


def _latest(context: ContextState) -> float:
    """How readily a pin yields where the policy does not say: the latest program's first."""
    return context.program.arrival


class PinBook:
    """All live pins. A context has at most one; the pages under pins stay below ``max_pages``.

    A run shared by two pins is counted for both, so ``pages`` is an upper bound of what is held.
    ``changed`` is told of every context that gets or loses a pin: its turns rank anew.
    """

    def __init__(
        self,
        kv: KVCache,
        max_pages: int,
        emit: Callable[[PinEnded], None],
        changed: Callable[[ContextState, PinOutcome | None, float], None],
        yields: Callable[[ContextState], float] | None = None,
    ) -> None:
        self._kv = kv
        self._max_pages = max_pages
        self._emit = emit
        self._changed = changed
        self._yields = yields if yields is not None else _latest
        self._pins: dict[ContextState, Pin] = {}
        self._soft: dict[ContextState, Pin] = {}
        self._due: list[tuple[float, int, Pin]] = []
        self._victims: list[tuple[float, float, int, Pin]] = []
        self._pushed = 0
        self.pages = 0
        self.outcomes: Counter[PinOutcome] = Counter()

    def __len__(self) -> int:
        return len(self._pins)

    def add(
        self, context: ContextState, lease: KVLease, ttl: float, now: float, *, soft: bool = False
    ) -> bool:
        """Turn a lease into a pin, keeping its published pages. False: the share is used up.

        A ``soft`` pin yields to any turn that needs its pages (``yield_soft``).
        """
        self.end(context, "handed_off", now)
        if lease.shared == 0 or self.pages + lease.shared > self._max_pages:
            return False
        self._kv.trim(lease)
        tokens = lease.shared * self._kv.page_size
        pin = Pin(context, lease, now, ttl, now + ttl, tokens, soft)
        if soft:
            self._soft[context] = pin
        self._pins[context] = context.pin = pin
        self.pages += lease.shared
        self._watch(pin)
        self._expose(pin)
        self._changed(context, None, now)
        return True

    def _watch(self, pin: Pin) -> None:
        self._pushed += 1
        heappush(self._due, (pin.expiry, self._pushed, pin))

    def _expose(self, pin: Pin) -> None:
        """Enter a pin among those that may be broken; entries of ended ones go if they prevail."""
        if len(self._victims) > 2 * len(self._pins) + 64:
            self._victims = [entry for entry in self._victims if entry[3].context.pin is entry[3]]
            heapify(self._victims)
        readiness = self._yields(pin.context)
        heappush(self._victims, (-readiness, -pin.start, self._pushed, pin))

    def set_expiry(self, context: ContextState, expiry: float) -> None:
        """Move the end of a context's pin, if it has one."""
        if context.pin is not None:
            context.pin.expiry = expiry
            context.pin.ttl = expiry - context.pin.start
            self._watch(context.pin)

    def watch(self, context: ContextState) -> None:
        """Say that a context's turns no longer wait: its pin, if there is one, can expire."""
        if context.pin is not None and not context.waiting:
            self._watch(context.pin)

    def end(self, context: ContextState, outcome: PinOutcome, now: float) -> bool:
        """End a context's pin, if it has one; its pages stay cached until evicted."""
        pin = self._pins.pop(context, None)
        if pin is None:
            return False
        context.pin = None
        self._soft.pop(context, None)
        self.pages -= pin.lease.shared
        self._kv.release(pin.lease, now)
        self._changed(context, outcome, now)
        self.outcomes[outcome] += 1
        program = context.program.program_id
        self._emit(PinEnded(program, context.name, pin.start, now, pin.ttl, pin.tokens, outcome))
        return True

    def yield_soft(self, now: float) -> bool:
        """End the newest soft pin; False if there is none."""
        return bool(self._soft) and self.end(next(reversed(self._soft)), "broken", now)

    def end_all(self, outcome: PinOutcome, now: float) -> None:
        """End every pin."""
        for context in list(self._pins):
            self.end(context, outcome, now)

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

    def expire(self, now: float, expiring: Callable[[Pin], float]) -> bool:
        """End the pins whose time is over and whose context is not back; whether there were any.

        ``expiring`` is asked first: the seconds that it returns are added.
        """
        ended = False
        while self._due and (not self._current(self._due[0]) or self._due[0][0] <= now):
            entry = heappop(self._due)
            if not self._current(entry):
                continue
            pin = entry[2]
            if (more := expiring(pin)) > 0:
                self.set_expiry(pin.context, now + max(more, SHORTEST_EXTENSION))
            else:
                ended |= self.end(pin.context, "expired", max(pin.expiry, pin.start))
        return ended

    def _current(self, entry: tuple[float, int, Pin]) -> bool:
        """Whether an entry is about a live pin that nobody waits for, and not outdated.

        A context that is back and waits keeps its pin until it is admitted; ``watch`` enters the
        pin anew if it never is.
        """
        expiry, _, pin = entry
        context = pin.context
        return context.pin is pin and pin.expiry == expiry and not context.waiting

    def victim(self, beneficiary: ContextState) -> ContextState | None:
        """Choose the pin to break: the readiest to yield; the beneficiary's own only at the end."""
        heap, own = self._victims, None
        while heap and heap[0][3].context.pin is not heap[0][3]:
            heappop(heap)
        if heap and heap[0][3].context is beneficiary and len(self._pins) > 1:
            own = heappop(heap)
            while heap[0][3].context.pin is not heap[0][3]:
                heappop(heap)
        found = heap[0][3].context if heap else None
        if own is not None:
            heappush(heap, own)
        return found

    def next_expiry(self) -> float | None:
        """Return when the next pin expires, if no context comes back before."""
        while self._due and not self._current(self._due[0]):
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def leases(self) -> list[KVLease]:
        """Return the leases held by pins."""
        return [pin.lease for pin in self._pins.values()]
