"""The page cache as the scheduler sees it. ``agentrt.engine.kv.PageCache`` is the real one."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any, Protocol

__all__ = ["CachedRun", "KVCache", "KVCounts", "KVLease", "PageArchive"]


class CachedRun(Protocol):
    """A run of cached pages that might be evicted."""

    @property
    def owned(self) -> bool:
        """Whether some living context's latest state needs it."""
        ...

    @property
    def last_used(self) -> float:
        """When a lease on it was last taken or given back."""
        ...

    @property
    def owners(self) -> Collection[str]:
        """Names of the contexts whose latest state needs it (``ContextView.owner``)."""
        ...

    @property
    def size(self) -> int:
        """Its pages."""
        ...


class KVLease(Protocol):
    """A receipt for pages; ``pages`` is the page table of its holder."""

    @property
    def pages(self) -> Sequence[int]: ...
    @property
    def shared(self) -> int: ...


class KVCounts(Protocol):
    """Page counts with ``free + cached + leased == total``."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def cached(self) -> int: ...
    @property
    def leased(self) -> int: ...


class PageArchive(Protocol):
    """Pages that outlive this process. ``agentrt.engine.tiers.archive`` has the real one."""

    def names(self, keys: Sequence[Hashable]) -> Sequence[str]:
        """Return a name for each page: of its tokens and all tokens before them."""
        ...

    def found(self, names: Sequence[str], start: int) -> int:
        """Return how many leading pages are there if the first ``start`` are taken for granted."""
        ...


class KVCache(Protocol):
    """Pages by content. See ``agentrt.engine.kv.PageCache`` for each verb's contract."""

    @property
    def total(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    def available(self) -> int: ...
    def match(self, keys: Sequence[Hashable]) -> int: ...
    def acquire(
        self, owner: str, keys: Sequence[Hashable], pages: int, now: float, *, spare: int = 0
    ) -> KVLease | None: ...

    # A lease goes back to the cache that made it; which class it is, only that cache knows.
    def extend(self, lease: Any, pages: int) -> bool: ...
    def publish(self, lease: Any, keys: Sequence[Hashable], now: float) -> None: ...
    def trim(self, lease: Any) -> None: ...
    def release(self, lease: Any, now: float) -> None: ...
    def end_owner(self, owner: str) -> None: ...
    def reset(self) -> None: ...
    def statistics(self) -> KVCounts: ...
    def check_integrity(self) -> None: ...
