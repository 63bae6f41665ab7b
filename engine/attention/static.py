"""Decode attention in torch over buffers: what it launches depends on shapes alone.

It gathers all that the page tables have room for: for tests, and where nothing better runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentrt.engine.attention.base import DecodeBuffers
from agentrt.engine.attention.partial import MASKED, merge, partial_attention
from agentrt.engine.attention.pool import PagePool

__all__ = ["StaticDecode"]


class StaticDecode:
    """Steps over ``buffers``, whose first row is a sequence; padding comes after the sequences.

    Args:
        pool: the pages.
        windows: of each layer: how many tokens back a token sees, itself included; None for all.
        buffers: lengths and page tables.
        chunk: tokens gathered at once; whole pages.
    """

    def __init__(
        self,
        pool: PagePool,
        windows: Sequence[int | None],
        buffers: DecodeBuffers,
        chunk: int,
    ) -> None:
        self._pool = pool
        self._windows = windows
        self._buffers = buffers
        self._chunk = chunk // pool.page_size

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values, then attend, as the protocol ``AttentionStep`` says."""
        self._store(layer, k, v)
        pool, pages = self._pool, self._buffers.pages
        grouped = q.view(q.shape[0], pool.heads, -1, pool.dim)  # [B, Hkv, G, D]
        parts = [
            self._part(layer, grouped, first, pages[:, first : first + self._chunk])
            for first in range(0, pages.shape[1], self._chunk)
        ]
        return merge(parts).view(q.shape)

    def _part(
        self, layer: int, queries: Tensor, first: int, pages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend over the tokens of some columns of the page tables, from page ``first`` on."""
        pool, count = self._pool, pages.shape[0]
        table = pages.long().clamp(min=0, max=pool.num_pages - 1)
        taken = pool.taken(layer, pool.rows(table))
        keys, values = taken.view(2, count, pool.heads, -1, pool.dim)
        position = first * pool.page_size + torch.arange(keys.shape[2], device=keys.device)
        lengths = self._buffers.lengths[:, None]
        hidden = position >= lengths
        window = self._windows[layer]
        if window is not None:
            hidden = hidden | (position < lengths - window)
        # What was never written may be NaN, and zero times NaN is NaN.
        values = values.masked_fill(hidden[:, None, :, None], 0)
        keys = keys.masked_fill(hidden[:, None, :, None], 0)
        mask = pool.mask(hidden, MASKED)[:, None, None, :]
        return partial_attention(queries, keys, values, mask=mask)

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the new tokens; padding writes what the first row writes, to the same place."""
        pool, lengths = self._pool, self._buffers.lengths
        row = torch.arange(lengths.shape[0], device=lengths.device)
        source = torch.where(lengths > 0, row, 0)
        position = (lengths[source] - 1).clamp(min=0).long()
        pages = self._buffers.pages[source].gather(1, (position // pool.page_size)[:, None])
        slots = pool.slots_at(pages[:, 0].long(), position % pool.page_size)
        pool.store(layer, slots, k[source], v[source])
