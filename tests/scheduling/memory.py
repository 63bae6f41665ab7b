"""Memory that keeps what is written to it, and a host link that takes its time, for the driver."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agentrt.scheduling.plan import SeqSlice, StepPlan, Transfer

__all__ = ["LateLink", "Memory"]


class Memory:
    """Pages of a pool by content: every read is of what was written for just these tokens."""

    def __init__(self, page: int) -> None:
        self._page = page
        self._pool: dict[tuple[int, int], int] = {}
        self._host: dict[int, dict[int, int]] = {}

    def run(self, piece: SeqSlice, ids: Sequence[int]) -> None:
        """Read what a slice builds on, then write its own tokens."""
        for at in range(piece.start):
            page, slot = piece.pages[at // self._page], at % self._page
            assert self._pool.get((page, slot)) == ids[at], f"{piece.turn_id}: token {at} is lost"
        ids = [*ids, *piece.draft]
        for at in range(piece.start, piece.start + piece.count):
            self._pool[piece.pages[at // self._page], at % self._page] = ids[at]

    def copy(self, transfer: Transfer) -> None:
        """Carry out a transfer."""
        for page, host in zip(transfer.pages, transfer.host_pages, strict=True):
            if transfer.kind == "store":
                self._host[host] = {slot: self._pool[page, slot] for slot in range(self._page)}
            else:
                for slot, token in self._host[host].items():
                    self._pool[page, slot] = token


class LateLink:
    """Completes the n-th transfer ``lags[n]`` looks after it began, in whatever order that is."""

    def __init__(self, lags: Sequence[int]) -> None:
        self._lags = lags
        self._begun = 0
        self._under_way: list[tuple[int, Transfer]] = []
        self._looks = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, transfers: Collection[Transfer]) -> None:
        """Take new transfers."""
        for transfer in transfers:
            lag = self._lags[self._begun % len(self._lags)]
            self._begun += 1
            self._under_way.append((self._looks + lag, transfer))

    def take_done(self, *, wait: bool = False) -> list[Transfer]:
        """Return transfers that are done by now; with ``wait`` at least one of those under way."""
        self._looks += 1
        if wait and self._under_way:
            self._looks = max(self._looks, min(due for due, _ in self._under_way))
        done = [transfer for due, transfer in self._under_way if due <= self._looks]
        self._under_way = [entry for entry in self._under_way if entry[0] > self._looks]
        return done[::-1]

    def check(self, plan: StepPlan, page: int) -> None:
        """No step touches a page that a transfer may still change, or writes one it still reads."""
        loads = {p for _, t in self._under_way if t.kind == "load" for p in t.pages}
        stores = {p for _, t in self._under_way if t.kind == "store" for p in t.pages}
        for piece in plan.slices:
            end = -(-(piece.start + piece.count) // page)
            assert not loads & set(piece.pages[:end]), "a page is used before it is loaded"
            written = set(piece.pages[piece.start // page : end])
            assert not stores & written, "a page is written while it is copied"
