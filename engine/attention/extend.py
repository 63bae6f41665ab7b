"""Attention of a slice of several tokens: over what is cached, then over itself.

The cached part is gathered in stretches, each attended without a mask (only a sliding window can
ask for one); the slice's own keys are the diagonal block, the only one with a causal mask, and need
no gathering. The partial results are merged by their log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agentrt.engine.attention.base import SliceLayout
from agentrt.engine.attention.partial import MASKED, Partial, merge, partial_attention
from agentrt.engine.attention.pool import PagePool

__all__ = ["ExtendPlan"]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Cached tokens of the sequence, ``length`` of them in the gathered ``rows``."""

    rows: torch.Tensor
    length: int
    mask: torch.Tensor | None  # [count, length], only where a window cuts through


class ExtendPlan:
    """One slice of two or more tokens, planned for one window size.

    Args:
        pool: the pages.
        piece: the slice.
        first: its first row in the batch.
        window: how many tokens back a token sees, itself included; None for all.
        chunk: tokens gathered at once; whole pages.
    """

    def __init__(
        self, pool: PagePool, piece: SliceLayout, first: int, window: int | None, chunk: int
    ) -> None:
        self._pool = pool
        self._batch_rows = slice(first, first + piece.count)
        oldest = 0 if window is None else max(0, piece.start - window + 1)
        begin = oldest // chunk * chunk
        self._stretches = tuple(
            self._stretch(piece, low, min(low + chunk, piece.start), window)
            for low in range(begin, piece.start, chunk)
        )
        cut = window is not None and window < piece.count
        end = piece.start + piece.count
        self._diagonal_mask = self._mask(piece, piece.start, end, window) if cut else None

    def _stretch(self, piece: SliceLayout, low: int, high: int, window: int | None) -> _Stretch:
        pool = self._pool
        chosen = piece.pages[low // pool.page_size : pool.pages_for(high)]
        rows = pool.rows(pool.table([list(chosen)]))
        pool.reserve(rows.numel())
        newest = piece.start + piece.count - 1
        cut = window is not None and low <= newest - window
        return _Stretch(rows, high - low, self._mask(piece, low, high, window) if cut else None)

    def _mask(self, piece: SliceLayout, low: int, high: int, window: int | None) -> torch.Tensor:
        device = self._pool.kv.device
        query = torch.arange(piece.start, piece.start + piece.count, device=device)[:, None]
        key = torch.arange(low, high, device=device)
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        return self._pool.mask(hidden, MASKED)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Attend this slice's rows of the batch ``q, k, v`` and write them to ``out``."""
        rows = self._batch_rows
        q, k, v = q[rows], k[rows], v[rows]
        count, heads, dim = q.shape
        kv_heads = k.shape[1]
        grouped = q.view(count, kv_heads, -1, dim).permute(1, 2, 0, 3)  # [Hkv, G, n, D]
        parts = [_diagonal(grouped, k, v, self._diagonal_mask)]
        if self._stretches:
            folded = grouped.reshape(1, kv_heads, -1, dim)
            parts += [self._cached(layer, stretch, folded) for stretch in self._stretches]
        merged = merge(parts).reshape(kv_heads, heads // kv_heads, count, dim)
        out[rows] = merged.permute(2, 0, 1, 3).reshape(count, heads, dim)

    def _cached(self, layer: int, stretch: _Stretch, folded: torch.Tensor) -> Partial:
        keys, values = self._pool.gather(layer, stretch.rows, 1)
        mask = stretch.mask
        if mask is not None:
            mask = mask.repeat(folded.shape[2] // mask.shape[0], 1)
        length = stretch.length
        return partial_attention(folded, keys[:, :, :length], values[:, :, :length], mask=mask)


def _diagonal(
    grouped: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> Partial:
    """Attend a slice over its own keys; returns the folded shape ``[1, kv heads, G * n, D]``."""
    kv_heads, group, count, dim = grouped.shape
    keys = k.permute(1, 0, 2).unsqueeze(1).expand(kv_heads, group, count, dim)
    values = v.permute(1, 0, 2).unsqueeze(1).expand(kv_heads, group, count, dim)
    out, lse = partial_attention(grouped, keys, values, causal=mask is None, mask=mask)
    return out.reshape(1, kv_heads, -1, dim), lse.reshape(1, kv_heads, -1)
