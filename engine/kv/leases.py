"""Leases on pages: the only way to use the cache.

A lease is a receipt: it says which pages its holder may read and write, and must be handed back.
Losing one is a leak that ``check_integrity`` reports, never the release of somebody else's pages.

    lease.pages:  [0, shared)           in the prefix tree, locked by this lease, not written again
                  [shared, len(pages))  private to this lease, being written
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from agentrt.engine.kv.pages import PagePool
from agentrt.engine.kv.prefix import Evicted, EvictionScore, Node, PrefixTree, keys_to
from agentrt.errors import InternalError

__all__ = ["CacheStatistics", "Lease", "PageCache"]


class Lease:
    """A receipt for pages in use by ``owner``. Made and changed by :class:`PageCache` only."""

    __slots__ = ("node", "open", "owner", "pages", "shared")

    def __init__(self, owner: str, node: Node, pages: list[int]) -> None:
        self.owner = owner
        self.node = node
        self.pages = pages
        self.shared = len(pages)
        self.open = True

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<Lease {self.owner}: {len(self.pages)} pages, {self.shared} shared, {state}>"


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Page counts; ``free + cached + leased == total``. ``evicted`` counts since the start."""

    total: int
    free: int
    cached: int
    leased: int
    evicted: int


class PageCache:
    """Page pool and prefix tree behind one set of verbs.

    ``total`` is in pages, ``page_size`` in tokens. ``score`` says what is evicted first, with
    ``rescore`` asked anew at each eviction; ``evicted`` is told of pages before others get them.
    Times are the caller's clock.
    """

    def __init__(
        self,
        total: int,
        page_size: int,
        score: EvictionScore,
        *,
        rescore: bool = False,
        evicted: Evicted | None = None,
    ) -> None:
        self.total = total
        self.page_size = page_size
        self._score = score
        self._rescore = rescore
        self._told = evicted
        self._pool = PagePool(total)
        self._tree = PrefixTree(score, rescore=rescore, evicted=evicted)
        self._leases: set[Lease] = set()
        self._private = 0
        self._evicted = 0

    def available(self) -> int:
        """Pages that a lease could get now: free ones and cached ones that nobody leases."""
        return self._pool.free + self._tree.evictable

    def match(self, keys: Sequence[Hashable]) -> int:
        """Return how many leading pages of ``keys`` are cached."""
        return self._tree.match(keys).pages

    def acquire(
        self, owner: str, keys: Sequence[Hashable], pages: int, now: float, *, spare: int = 0
    ) -> Lease | None:
        """Lease ``pages`` pages: the cached prefix of ``keys``, then fresh ones.

        Returns ``None``, and leases nothing, if they cannot all be had with ``spare`` pages left.
        """
        node, found = self._tree.lock(keys[:pages], now)
        fresh = pages - len(found)
        if fresh + spare > self.available():
            self._tree.unlock(node, now)
            return None
        lease = Lease(owner, node, found)
        self._leases.add(lease)
        self._tree.claim(owner, node)
        self._take(lease, fresh)
        return lease

    def extend(self, lease: Lease, pages: int) -> bool:
        """Grow a lease to ``pages`` pages; False, unchanged, if they cannot all be had."""
        self._require_open(lease)
        fresh = pages - len(lease.pages)
        if fresh > self.available():
            return False
        self._take(lease, max(fresh, 0))
        return True

    def _take(self, lease: Lease, count: int) -> None:
        shortage = count - self._pool.free
        if shortage > 0:
            self._pool.release(self._tree.evict(shortage))
            self._evicted += shortage
        lease.pages += self._pool.allocate(count)
        self._private += count

    def publish(self, lease: Lease, keys: Sequence[Hashable], now: float) -> None:
        """Put the lease's first ``len(keys)`` pages, which are fully written, into the tree.

        Where the same content is there already its pages replace the lease's own.
        """
        self._require_open(lease)
        start, end = lease.shared, len(keys)
        if end > len(lease.pages):
            raise InternalError(f"{end} pages published of a lease of {len(lease.pages)}.")
        if end <= start:
            return
        own = lease.pages[start:end]
        node, kept, spare = self._tree.insert(lease.node, keys[start:], own, now)
        lease.pages[start:end] = kept
        lease.node, lease.shared = node, end
        self._private -= end - start
        self._pool.release(spare)
        self._tree.claim(lease.owner, node)

    def trim(self, lease: Lease) -> None:
        """Give back the private pages of a lease; it goes on protecting the published ones."""
        self._require_open(lease)
        spare = lease.pages[lease.shared :]
        del lease.pages[lease.shared :]
        self._private -= len(spare)
        self._pool.release(spare)

    def release(self, lease: Lease, now: float) -> None:
        """End a lease: private pages are freed, published ones stay cached until evicted."""
        self.trim(lease)
        lease.open = False
        self._leases.remove(lease)
        self._tree.unlock(lease.node, now)

    def end_owner(self, owner: str) -> None:
        """Say that a context will not come back: pages that only it used are evicted first."""
        self._tree.disown(owner)

    def reset(self) -> None:
        """Forget all content: every page is free. Owners are forgotten, too.

        Raises:
            InternalError: a lease is open.
        """
        if self._leases:
            raise InternalError(f"The page cache was reset under {len(self._leases)} leases.")
        self._evicted += self._tree.pages
        self._pool = PagePool(self.total)
        self._tree = PrefixTree(self._score, rescore=self._rescore, evicted=self._told)
        self._private = 0

    def _require_open(self, lease: Lease) -> None:
        if not lease.open:
            raise InternalError(f"{lease!r} was used after its release.")

    def runs(self) -> Iterator[tuple[list[Hashable], list[int]]]:
        """Yield what is cached: keys from the first page on, and the pages of the last of them."""
        for node in self._tree.nodes():
            yield keys_to(node), list(node.pages)

    def statistics(self) -> CacheStatistics:
        """Return page counts."""
        leased = self._tree.locked_pages + self._private
        cached = self._tree.evictable
        return CacheStatistics(self.total, self._pool.free, cached, leased, self._evicted)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` unless every page is in one place and the counts add up."""
        self._pool.check_integrity()
        self._tree.check_integrity()
        counts = self.statistics()
        if counts.free + counts.cached + counts.leased != counts.total:
            raise InternalError(f"Pages do not add up: {counts}.")
        places = [page for node in self._tree.nodes() for page in node.pages]
        for lease in self._leases:
            places += lease.pages[lease.shared :]
        if len(places) != len(set(places)) or len(places) != counts.total - counts.free:
            raise InternalError(f"{len(places)} pages placed, {len(set(places))} of them distinct.")
        self._check_locks()

    def _check_locks(self) -> None:
        held = sum(1 for lease in self._leases if lease.node is not self._tree.root)
        locks = sum(child.locks for child in self._tree.root.children.values())
        if held != locks:
            raise InternalError(f"{held} leases hold tree paths, {locks} locks are counted.")
        for lease in self._leases:
            shared = [page for node in reversed(list(lease.node.path())) for page in node.pages]
            if shared != lease.pages[: lease.shared]:
                raise InternalError(f"{lease!r} does not agree with its path in the tree.")
