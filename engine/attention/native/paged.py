"""Paged attention by the native kernels. Its pages are laid out as those of the torch path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agentrt.engine.attention.base import BatchLayout
from agentrt.engine.attention.native.library import NativeLibrary
from agentrt.engine.attention.pool import PagedBase, PagePool
from agentrt.engine.attention.reader import LayoutReader
from agentrt.engine.model.config import ModelShape

__all__ = ["NativePagedAttention", "NativeStep"]


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
        self._windows = list(dict.fromkeys(config.windows))
        self._which = [self._windows.index(window) for window in config.windows]
        self._pool = PagePool(config, num_pages, page_size, dtype, "cpu")
        self._group = config.num_heads // config.num_kv_heads
        self._reader = LayoutReader(self._pool)

    def plan(self, layout: BatchLayout) -> NativeStep:
        """Prepare one step over ``layout``, as the protocol ``Attention`` says."""
        batch = self._batch(layout)
        works = [self._work(batch, window) for window in self._windows]
        return NativeStep(self._library, self._pool, batch, works, self._which)

    def _batch(self, layout: BatchLayout) -> _Batch:
        read = self._reader.read(layout)
        slices = np.stack([read.start, read.count, read.row, read.table], axis=1)
        return _Batch(*(torch.from_numpy(array) for array in (read.pages, slices, read.slots)))

    def _work(self, batch: _Batch, window: int | None) -> _Work:
        pool, size = self._pool, window or 0
        made = self._library.plan(batch.slices, pool.heads, self._group, pool.dim, size)
        return _Work(size, *made)


class NativeStep:
    """One planned batch over a :class:`NativePagedAttention`; ``which`` work is whose layer's."""

    def __init__(
        self,
        library: NativeLibrary,
        pool: PagePool,
        batch: _Batch,
        works: Sequence[_Work],
        which: Sequence[int],
    ) -> None:
        self._library = library
        self._pages = pool.kv
        self._kv = pool.kv.unbind(0)
        self._heads = pool.heads
        self._batch = batch
        self._works = works
        self._which = which

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
        """Return all layers' pages, slots and plans, as ``OperandStep`` says."""
        batch, works = self._batch, self._works
        plans = [part for work in works for part in (work.table, work.partial, work.arrived)]
        windows = [work.window for work in works]
        return (self._pages, batch.slots, batch.pages, batch.slices, plans, windows, self._which)

    def _attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        batch, work = self._batch, self._works[self._which[layer]]
        out = torch.empty(q.shape, dtype=q.dtype)
        plan = (batch.pages, batch.slices, work.table, work.partial, work.arrived)
        self._library.attend(self._kv[layer], *plan, q, work.window, out)
        return out


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return ``x [T, heads, dim]`` with each token's heads next to each other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
