"""Attention of all single-token slices of a batch together.

Every sequence's context is cut into chunks; chunks of similar length, whosever they are, are
gathered and attended in one call, and each sequence's chunks are merged by their log-sum-exp. A
group of chunks is kept small enough for its scratch to stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from agentrt.engine.attention.base import SliceLayout
from agentrt.engine.attention.partial import MASKED, partial_attention
from agentrt.engine.attention.pool import PagePool

__all__ = ["DecodePlan"]

_GROUP_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class _Item:
    """Chunk ``place`` of sequence ``owner``: tokens ``[low, high)``, gathered from ``begin`` on."""

    owner: int
    place: int
    begin: int
    low: int
    high: int
    pages: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Chunks attended together. ``owners`` and ``places`` say whose and which, ``[items]``."""

    owners: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor | None  # [items, 1, 1, tokens], where they are not all of one length
    unwritten: torch.Tensor | None


class DecodePlan:
    """The slices of one token each, planned for one window size.

    Args:
        pool: the pages.
        pieces: the slices.
        batch_rows: each slice's row in the batch.
        window: how many tokens back a token sees, itself included; None for all.
        chunk: most tokens of a chunk; whole pages.
    """

    def __init__(
        self,
        pool: PagePool,
        pieces: Sequence[SliceLayout],
        batch_rows: Sequence[int],
        window: int | None,
        chunk: int,
    ) -> None:
        self._pool = pool
        self._rows = torch.tensor(batch_rows, dtype=torch.int64, device=pool.kv.device)
        items = [
            item
            for owner, piece in enumerate(pieces)
            for item in _items(pool, owner, piece.start + 1, window, chunk)
        ]
        self._chunks = max(item.place for item in items) + 1
        self._groups = [self._group(group, pieces) for group in self._grouped(items)]
        pool.reserve(max(group.rows.numel() for group in self._groups))

    def _grouped(self, items: list[_Item]) -> Iterator[list[_Item]]:
        """Split items into groups of similar width that fit the scratch."""
        pool = self._pool
        page_bytes = 2 * pool.heads * pool.page_size * pool.dim * pool.kv.element_size()
        group: list[_Item] = []
        for item in sorted(items, key=lambda item: -item.pages):
            wide = group[0].pages if group else 0
            full = (len(group) + 1) * wide * page_bytes > _GROUP_BYTES
            if group and (full or 2 * item.pages < wide):
                yield group
                group = []
            group.append(item)
        yield group

    def _group(self, items: list[_Item], pieces: Sequence[SliceLayout]) -> _Group:
        pool, device = self._pool, self._pool.kv.device
        wide = items[0].pages
        pages = []
        for item in items:
            first = item.begin // pool.page_size
            own = list(pieces[item.owner].pages[first : first + item.pages])
            pages.append(own + own[:1] * (wide - len(own)))  # padding is masked
        owners = torch.tensor([item.owner for item in items], device=device)
        places = torch.tensor([item.place for item in items], device=device)
        rows = pool.rows(pool.table(pages))
        return _Group(owners, places, rows, self._mask(items), self._unwritten(items))

    def _unwritten(self, items: list[_Item]) -> torch.Tensor | None:
        """Find gathered tokens past an item's end; its padding repeats its first page."""
        pool, device = self._pool, self._pool.kv.device
        wide = items[0].pages * pool.page_size
        lengths = [item.high - item.begin for item in items]
        if all(length == wide for length in lengths):
            return None
        place = torch.arange(wide, device=device)
        own = torch.tensor([item.pages * pool.page_size for item in items], device=device)[:, None]
        source = torch.where(place < own, place, place % pool.page_size)
        return pool.unwritten(source >= torch.tensor(lengths, device=device)[:, None])

    def _mask(self, items: list[_Item]) -> torch.Tensor | None:
        """Hide what was gathered beyond an item: padding, and tokens older than its window."""
        pool = self._pool
        wide = items[0].pages * pool.page_size
        if all(item.low == item.begin and item.high == item.begin + wide for item in items):
            return None
        bounds = [[item.low - item.begin, item.high - item.begin] for item in items]
        low, high = torch.tensor(bounds, device=pool.kv.device).unsqueeze(-1).unbind(1)
        key = torch.arange(wide, device=pool.kv.device)
        return pool.mask((key < low) | (key >= high), MASKED)[:, None, None, :]

    def attend(self, layer: int, q: torch.Tensor, out: torch.Tensor) -> None:
        """Attend these slices' rows of the batch ``q`` and write them to ``out``."""
        pool = self._pool
        queries = q[self._rows]
        grouped = queries.view(len(queries), pool.heads, -1, pool.dim)  # [B, Hkv, G, D]
        parts = []
        for group in self._groups:
            keys, values = pool.gather(layer, group.rows, len(group.owners), group.unwritten)
            parts.append(partial_attention(grouped[group.owners], keys, values, mask=group.mask))
        if self._chunks == 1:
            merged = torch.empty_like(grouped)
            for group, (part, _) in zip(self._groups, parts, strict=True):
                merged[group.owners] = part
        else:
            merged = self._merge(grouped, [out for out, _ in parts], [lse for _, lse in parts])
        out[self._rows] = merged.view(queries.shape)

    def _merge(
        self, like: torch.Tensor, outs: list[torch.Tensor], lses: list[torch.Tensor]
    ) -> torch.Tensor:
        """Weigh each sequence's chunks by their log-sum-exp, in fp32."""
        shape = (self._chunks, *like.shape[:-1])
        every = torch.full(shape, MASKED, dtype=torch.float32, device=like.device)
        for group, lse in zip(self._groups, lses, strict=True):
            every[group.places, group.owners] = lse.float()
        weights = torch.softmax(every, dim=0)
        merged = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
        for group, part in zip(self._groups, outs, strict=True):
            weight = weights[group.places, group.owners].unsqueeze(-1)
            merged.index_add_(0, group.owners, part.float() * weight)
        return merged.to(like.dtype)


def _items(
    pool: PagePool, owner: int, length: int, window: int | None, chunk: int
) -> Iterator[_Item]:
    """Yield the chunks of one sequence that its newest token sees, oldest first."""
    oldest = 0 if window is None else max(0, length - window)
    first = oldest // pool.page_size * pool.page_size
    for place, begin in enumerate(range(first, length, chunk)):
        high = min(begin + chunk, length)
        yield _Item(owner, place, begin, max(begin, oldest), high, pool.pages_for(high - begin))
