"""The page pool: integers handed out and taken back."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.errors import InternalError

__all__ = ["PagePool"]


class PagePool:
    """Pages ``0 .. total - 1``; each is either free or held by exactly one holder."""

    def __init__(self, total: int) -> None:
        self.total = total
        # Reversed, so that a fresh pool hands out ascending page numbers from the end of the list.
        self._free = list(range(total - 1, -1, -1))
        self._held = bytearray(total)

    @property
    def free(self) -> int:
        """How many pages are free."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` pages.

        Raises:
            InternalError: fewer are free; callers ask ``free`` first.
        """
        if count > len(self._free):
            raise InternalError(f"{count} pages asked of a pool with {len(self._free)} free.")
        if count == 0:
            return []
        pages = self._free[-count:][::-1]
        del self._free[-count:]
        for page in pages:
            self._held[page] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Take pages back.

        Raises:
            InternalError: a page is already free, or not of this pool.
        """
        held = self._held
        for page in pages:
            if not 0 <= page < self.total or not held[page]:
                raise InternalError(f"Page {page} was released twice or is not of this pool.")
            held[page] = 0
        self._free.extend(pages)

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if the free list and the held marks disagree."""
        marked = self.total - sum(self._held)
        if marked != len(self._free) or len(set(self._free)) != len(self._free):
            raise InternalError(f"{len(self._free)} pages are listed free, {marked} are marked so.")
