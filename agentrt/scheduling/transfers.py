"""Copies between the page pool and a host tier: who holds which pages until they are done.

The host tier is a second page cache: what is copied is found there by content. A copy holds a
lease on both sides, so that nobody else gets the pages before it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from agentrt.errors import InternalError
from agentrt.scheduling.kv import KVCache, KVLease, PageArchive
from agentrt.scheduling.plan import Transfer

__all__ = ["TransferBook"]


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A copy, the leases that it holds, and what follows when it is done."""

    transfer: Transfer
    host: KVLease
    pool: KVLease | None
    keys: Sequence[Hashable]
    done: Callable[[float, bool], None] | None


class TransferBook:
    """The copies that are under way, and counts of tokens copied each way."""

    def __init__(self, kv: KVCache, host: KVCache, archive: PageArchive | None = None) -> None:
        self._kv = kv
        self._host = host
        self._archive = archive
        self._tickets = 0
        self._under_way: dict[int, _UnderWay] = {}
        self._new: list[Transfer] = []
        self.loaded_tokens = 0
        self.stored_tokens = 0
        self.fetched_tokens = 0

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def waiting(self) -> bool:
        """Whether there are copies to begin."""
        return bool(self._new)

    def take_new(self) -> tuple[Transfer, ...]:
        """Return the copies to begin, once."""
        new, self._new = tuple(self._new), []
        return new

    def found(self, keys: Sequence[Hashable]) -> int:
        """Return how many leading pages of ``keys`` the host holds."""
        return self._host.match(keys)

    def end_owner(self, owner: str) -> None:
        """Say that a context will not come back."""
        self._host.end_owner(owner)

    def store(self, owner: str, keys: Sequence[Hashable], now: float) -> bool:
        """Copy the cached pages of ``keys`` that the host lacks; False if it has no room for them.

        The caller holds a lease on all of them; the copy takes another one.
        """
        host = self._host.acquire(owner, keys, len(keys), now)
        if host is None:
            return False
        first = host.shared
        if first == len(keys):
            self._host.release(host, now)
            return True
        pool = self._kv.acquire(owner, keys, len(keys), now)
        if pool is None or pool.shared < len(keys):
            raise InternalError(f"{len(keys)} pages to store are not all in the pool.")
        pages, host_pages = pool.pages[first:], host.pages[first:]
        self.stored_tokens += len(pages) * self._kv.page_size
        self._begin("store", pages, host_pages, host, pool, keys, None)
        return True

    def load(
        self,
        owner: str,
        keys: Sequence[Hashable],
        lease: KVLease,
        now: float,
        done: Callable[[float, bool], None],
    ) -> int:
        """Copy what the host holds of ``keys`` into the private pages of ``lease``.

        ``lease`` covers ``keys`` and stays the caller's, who must keep it until ``done`` is called
        with the time and whether the pages hold what they should. Returns the ticket.
        """
        host = self._host.acquire(owner, keys, len(keys), now)
        if host is None or host.shared < len(keys):
            raise InternalError(f"{len(keys)} pages to load are not all on the host.")
        pages = lease.pages[lease.shared : len(keys)]
        self.loaded_tokens += len(pages) * self._kv.page_size
        return self._begin("load", pages, host.pages[lease.shared :], host, None, keys, done)

    def fetch(
        self, owner: str, keys: Sequence[Hashable], now: float, done: Callable[[float, bool], None]
    ) -> int | None:
        """Have the pages of ``keys`` that the host lacks read from files, as far as these go.

        Returns the ticket; None if there are none, or the host has no room for them.
        """
        if self._archive is None:
            return None
        names, first = self._archive.names(keys), self._host.match(keys)
        end = self._archive.found(names, first)
        host = self._host.acquire(owner, keys[:end], end, now) if end > first else None
        if host is None:
            return None
        self.fetched_tokens += (end - first) * self._kv.page_size
        pages = host.pages[first:]
        return self._begin("fetch", (), pages, host, None, keys[:end], done, names[first:end])

    def _begin(
        self,
        kind: Literal["load", "store", "fetch"],
        pages: Sequence[int],
        host_pages: Sequence[int],
        host: KVLease,
        pool: KVLease | None,
        keys: Sequence[Hashable],
        done: Callable[[float, bool], None] | None,
        names: Sequence[str] = (),
    ) -> int:
        self._tickets += 1
        transfer = Transfer(self._tickets, kind, tuple(pages), tuple(host_pages), tuple(names))
        self._under_way[self._tickets] = _UnderWay(transfer, host, pool, keys, done)
        self._new.append(transfer)
        return self._tickets

    def finish(self, ticket: int, now: float, *, failed: bool = False) -> None:
        """Take note that a copy is over: let go of its leases; what was stored can be found now.

        What ``failed`` is forgotten: a store is not found, a load's pages hold nothing.

        Raises:
            InternalError: no such copy is under way.
        """
        copy = self._under_way.pop(ticket, None)
        if copy is None:
            raise InternalError(f"Transfer {ticket} ended, but none of that number is under way.")
        if copy.transfer.kind != "load" and not failed:
            self._host.publish(copy.host, copy.keys, now)
        self._host.release(copy.host, now)
        if copy.pool is not None:
            self._kv.release(copy.pool, now)
        if copy.done is not None:
            copy.done(now, not failed)

    def abort(self, now: float) -> None:
        """Give up the copies that are under way and forget what the host holds.

        Nobody is told that they are done; their driver must not report them either.
        """
        for copy in self._under_way.values():
            self._host.release(copy.host, now)
            if copy.pool is not None:
                self._kv.release(copy.pool, now)
        self._under_way.clear()
        self._new.clear()
        self._host.reset()

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if the host's pages do not add up."""
        self._host.check_integrity()
