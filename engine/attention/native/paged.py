"""Paged attention by the native kernels. Its pages are laid out as those of the torch path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.native.library import NativeLibrary
from agentrt.engine.attention.pool import PagedBase, PagePool
from agentrt.engine.model.config import ModelShape
from agentrt.errors import InternalError

__all__ = ["NativePagedAttention", "NativeStep"]

_Ids = NDArray[np.int64]


class _Tables:
    """Page tables as arrays. Turning a list into an array costs more than all other planning, and
    tables hardly change from step to step, so each is kept with the list that it was made from."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sequence[int], list[int], _Ids]] = {}

    def arrays(self, slices: Sequence[SliceLayout], needed: Sequence[int]) -> list[_Ids]:
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


@dataclass(frozen=True, slots=True)
class _Work:
    """What the kernel computes for one window size; made by the operator ``plan``."""

    window: int
    table: torch.Tensor
    partial: torch.Tensor
    arrived: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where a batch's tokens go and come from: pages in a row, slices ``[n, 4]``, slots ``[T]``."""

    pages: torch.Tensor
    slices: torch.Tensor
    slots: torch.Tensor


class NativePagedAttention(PagedBase):
    """Attention of one model over a pool of pages that it owns, in CPU memory.

    Args:
        library: the kernels.
        config: the model's shape.
        num_pages: pages in the pool; their memory is taken at once.
        page_size: tokens a page holds.
        dtype: of keys and values, ``float32`` or ``bfloat16``: the model's.
    """

    def __init__(
        self,
        library: NativeLibrary,
        config: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
    ) -> None:
        self._library = library
        self._windows = config.windows
        self._pool = PagePool(config, num_pages, page_size, dtype, "cpu")
        self._group = config.num_heads // config.num_kv_heads
        self._tables = _Tables()

    def plan(self, layout: BatchLayout) -> NativeStep:
        """Prepare one step over ``layout``, as the protocol ``Attention`` says."""
        batch = self._batch(layout)
        works = {window: self._work(batch, window) for window in dict.fromkeys(self._windows)}
        by_layer = [works[window] for window in self._windows]
        return NativeStep(self._library, self._pool, batch, by_layer)

    def _batch(self, layout: BatchLayout) -> _Batch:
        start = np.array([piece.start for piece in layout.slices])
        count = np.array([piece.count for piece in layout.slices])
        held = np.array([len(piece.pages) for piece in layout.slices])
        needed = self._pool.pages_for(start + count)
        for index in np.flatnonzero((start < 0) | (count < 1) | (held < needed))[:1]:
            self._pool.check(layout.slices[index])
        tables = self._tables.arrays(layout.slices, needed.tolist())
        pages = np.concatenate(tables)
        if not 0 <= int(pages.min()) <= int(pages.max()) < self.num_pages:
            raise InternalError(f"A page table leaves the pool of {self.num_pages} pages.")
        firsts = (np.cumsum(count) - count, np.cumsum(needed) - needed)
        slices = np.stack([start, count, *firsts], axis=1)
        slots = self._slots(slices, pages)
        return _Batch(*(torch.from_numpy(array) for array in (pages, slices, slots)))

    def _slots(self, slices: _Ids, pages: _Ids) -> _Ids:
        """Return ``page * page size + offset`` of each token."""
        start, count, first, begin = slices.T
        position = np.arange(count.sum()) + np.repeat(start - first, count)
        slots: _Ids = pages[np.repeat(begin, count) + position // self.page_size]
        slots *= self.page_size
        slots += position % self.page_size
        return slots

    def _work(self, batch: _Batch, window: int | None) -> _Work:
        pool, size = self._pool, window or 0
        made = self._library.plan(batch.slices, pool.heads, self._group, pool.dim, size)
        return _Work(size, *made)


class NativeStep:
    """One planned batch over a :class:`NativePagedAttention`."""

    def __init__(
        self, library: NativeLibrary, pool: PagePool, batch: _Batch, works: Sequence[_Work]
    ) -> None:
        self._library = library
        self._pages = pool.kv
        self._kv = pool.kv.unbind(0)
        self._heads = pool.heads
        self._batch = batch
        self._works = works

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store keys and values, then attend, as the protocol ``AttentionStep`` says."""
        self._library.store_kv(self._kv[layer], self._batch.slots, _dense(k), _dense(v))
        return self._attend(layer, _dense(q))

    def attend_raw(
        self,
        layer: int,
        heads: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Norm, rotate, store and attend, as the protocol ``RawAttentionStep`` says."""
        kv, slots = self._kv[layer], self._batch.slots
        self._library.rotate_store(kv, slots, heads, norm, eps, *rotation)
        return self._attend(layer, heads[:, : -2 * self._heads])

    def operands(self) -> tuple[object, ...]:
        """Return all layers' pages, slots and plans, as ``RawAttentionStep`` says."""
        batch, works = self._batch, list({id(work): work for work in self._works}.values())
        plans = [part for work in works for part in (work.table, work.partial, work.arrived)]
        windows = [work.window for work in works]
        which = [windows.index(work.window) for work in self._works]
        return (self._pages, batch.slots, batch.pages, batch.slices, plans, windows, which)

    def _attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        batch, work = self._batch, self._works[layer]
        out = torch.empty(q.shape, dtype=q.dtype)
        plan = (batch.pages, batch.slices, work.table, work.partial, work.arrived)
        self._library.attend(self._kv[layer], *plan, q, work.window, out)
        return out


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return ``x [T, heads, dim]`` with each token's heads next to each other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
