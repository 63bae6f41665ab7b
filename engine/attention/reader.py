"""A batch's layout as arrays, checked: what attention kernels are planned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.pool import PagePool
from agentrt.errors import InternalError

__all__ = ["BatchArrays", "LayoutReader"]

_Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchArrays:
    """A batch as arrays: of its slices ``[n]``, its page ids in a row, and its tokens ``[T]``."""

    start: _Ids
    """Each slice's first position."""
    count: _Ids
    """Each slice's tokens."""
    row: _Ids
    """Each slice's first row in the batch."""
    table: _Ids
    """Where each slice's page table begins in ``pages``."""
    pages: _Ids
    slots: _Ids
    """``page * page size + offset`` of each token."""


class LayoutReader:
    """Reads layouts of steps over one pool.

    Turning a list of pages into an array costs more than all other planning, and page tables hardly
    change from step to step, so each is kept with the list that it was made from.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._known: dict[int, tuple[Sequence[int], list[int], _Ids]] = {}

    def read(self, layout: BatchLayout) -> BatchArrays:
        """Return ``layout`` as arrays.

        Raises:
            InternalError: a slice is empty, or its page table is too short or out of range.
        """
        pool = self._pool
        start = np.array([piece.start for piece in layout.slices])
        count = np.array([piece.count for piece in layout.slices])
        held = np.array([len(piece.pages) for piece in layout.slices])
        needed = pool.pages_for(start + count)
        for index in np.flatnonzero((start < 0) | (count < 1) | (held < needed))[:1]:
            pool.check(layout.slices[index])
        pages = np.concatenate(self._tables(layout.slices, needed.tolist()))
        if not 0 <= int(pages.min()) <= int(pages.max()) < pool.num_pages:
            raise InternalError(f"A page table leaves the pool of {pool.num_pages} pages.")
        row, table = np.cumsum(count) - count, np.cumsum(needed) - needed
        position, first = start, table
        if len(row) < (tokens := int(count.sum())):  # not only single tokens
            position = np.arange(tokens) + np.repeat(start - row, count)
            first = np.repeat(table, count)
        place, offset = np.divmod(position, pool.page_size)
        slots: _Ids = pages[first + place] * pool.page_size + offset
        return BatchArrays(start, count, row, table, pages, slots)

    def _tables(self, slices: Sequence[SliceLayout], needed: Sequence[int]) -> list[_Ids]:
        """Return the ``needed`` page ids of each slice; forgets the tables of all others."""
        kept: dict[int, tuple[Sequence[int], list[int], _Ids]] = {}
        found = []
        for piece, count in zip(slices, needed, strict=True):
            pages = piece.pages
            # The list itself is kept too: while it lives, nothing else has its id.
            key = id(pages)
            entry = self._known.get(key)
            # Cutting a list costs as much as comparing it, and mostly there is nothing to cut.
            now = pages if len(pages) == count else pages[:count]
            if entry is None or entry[0] is not pages or entry[1] != now:
                now = list(now)
                entry = (pages, now, np.array(now, dtype=np.int64))
            kept[key] = entry
            found.append(entry[2])
        self._known = kept
        return found
