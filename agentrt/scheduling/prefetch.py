"""Bringing KV back from the host before its context is expected, while there is room.

A policy says, when a turn has ended and when its tool makes progress, from when on a context's KV
should be in the pool again. It is then loaded, while nobody waits, into pages that no turn and no
pin holds, and held by a soft pin: one that yields to any turn that needs its pages. So it costs
bandwidth and what was used longest ago, and no turn its place.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from agentrt.scheduling.kv import KVCache, KVLease
from agentrt.scheduling.pins import PinBook
from agentrt.scheduling.policy import Prefetch
from agentrt.scheduling.state import ContextState
from agentrt.scheduling.transfers import TransferBook

__all__ = ["Prefetcher"]

RETRY = 0.5
"""Seconds until it is tried again where there was no room."""
ROOM = 4
"""One in so many pages of the pool stays without lease: for what runs and comes next."""


@dataclass(slots=True, eq=False)
class _Wish:
    """A context's KV that is to be in the pool from ``at`` on, to be held ``keep`` seconds."""

    context: ContextState
    keys: Sequence[Hashable]
    at: float
    keep: float


class Prefetcher:
    """Contexts that are away, by when their KV is wanted; a context has one wish at most.

    ``begun`` and ``pages`` count the loads begun and the pages they brought.
    """

    def __init__(self, kv: KVCache, transfers: TransferBook, pins: PinBook) -> None:
        self._kv = kv
        self._transfers = transfers
        self._pins = pins
        self._wishes: dict[ContextState, _Wish] = {}
        self._due: list[tuple[float, int, _Wish]] = []
        self._loading: dict[ContextState, KVLease] = {}
        self._order = 0
        self.begun = 0
        self.pages = 0

    def ask(self, context: ContextState, keys: Sequence[Hashable], wish: Prefetch | None) -> None:
        """Replace a context's wish; None takes it back."""
        self.forget(context)
        if wish is not None:
            self._wishes[context] = entry = _Wish(context, keys, wish.at, wish.keep)
            self._push(entry)

    def keys(self, context: ContextState) -> Sequence[Hashable] | None:
        """Return what a context's wish is about; None if it has none."""
        wish = self._wishes.get(context)
        return None if wish is None else wish.keys

    def forget(self, context: ContextState) -> None:
        """Drop a context's wish: it is back, or gone."""
        self._wishes.pop(context, None)

    def loading(self, context: ContextState) -> bool:
        """Whether a context's KV is on its way."""
        return context in self._loading

    def abort(self, now: float) -> None:
        """Give up the loads that are under way; nobody will be told of them."""
        for lease in self._loading.values():
            self._kv.release(lease, now)
        self._loading.clear()

    def leases(self) -> Collection[KVLease]:
        """Return the leases that loads under way hold."""
        return self._loading.values()

    def _push(self, wish: _Wish) -> None:
        self._order += 1
        heappush(self._due, (wish.at, self._order, wish))

    def next_due(self) -> float | None:
        """Return when the next wish is due, if there is one."""
        while self._due and self._wishes.get(self._due[0][2].context) is not self._due[0][2]:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def run(self, spare: int, now: float) -> None:
        """Begin what is due; ``spare`` pages are left besides a share of the pool."""
        while (due := self.next_due()) is not None and due <= now:
            wish = heappop(self._due)[2]
            if self._begin(wish, spare + self._kv.total // ROOM, now):
                self.forget(wish.context)
            else:
                wish.at = now + RETRY
                self._push(wish)

    def _begin(self, wish: _Wish, spare: int, now: float) -> bool:
        """Bring or hold what there is; False if there is no room for it now."""
        context = wish.context
        if context.live_turns or context.pin is not None or context in self._loading:
            return True
        found, held = self._transfers.found(wish.keys), self._kv.match(wish.keys)
        target = max(found, held)
        if target == 0:
            return True
        lease = self._kv.acquire(context.owner, wish.keys[:target], target, now, spare=spare)
        if lease is None:
            return False
        if target == held:
            self._hold(context, lease, wish.keep, now)
            return True

        def done(at: float, good: bool) -> None:
            self._loaded(wish, lease, target if good else lease.shared, at)

        self._transfers.load(context.owner, wish.keys[:target], lease, now, done)
        self._loading[context] = lease
        self.begun += 1
        self.pages += target - held
        return True

    def _loaded(self, wish: _Wish, lease: KVLease, pages: int, now: float) -> None:
        context = wish.context
        del self._loading[context]
        self._kv.publish(lease, wish.keys[:pages], now)
        self._hold(context, lease, wish.keep, now)

    def _hold(self, context: ContextState, lease: KVLease, keep: float, now: float) -> None:
        gone = context.program.forgotten or context.gone
        idle = not gone and context.live_turns == 0
        if not (idle and self._pins.add(context, lease, keep, now, soft=True)):
            self._kv.release(lease, now)
        if gone:
            self._kv.end_owner(context.owner)
