"""The pages of all layers: storing keys and values, and gathering them into contiguous scratch."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.model.config import ModelShape
from agentrt.errors import InternalError

__all__ = ["PagePool", "PagedBase"]

_Count = TypeVar("_Count", int, NDArray[np.int64])


class PagePool:
    """Keys and values in ``[layers, 2, pages, kv heads, page, head dim]``.

    ``dtype`` is what is computed in, and that of ``kv`` unless a subclass keeps it narrower. A page
    of one head is contiguous. Seen flat, a layer is ``2 * pages * kv heads`` rows, each one
    page of one head; gathering picks such rows, so that each head's tokens end up side by side.
    """

    def __init__(
        self,
        config: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        computed: torch.dtype | None = None,
    ) -> None:
        heads, dim = config.num_kv_heads, config.head_dim
        shape = (config.num_layers, 2, num_pages, heads, page_size, dim)
        # Zeros, not empty: touching the memory here makes a pool that does not fit fail at start.
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self.num_pages, self.heads, self.page_size, self.dim = shape[2:]
        self.dtype = computed or dtype
        self._scratch = torch.empty(0, dtype=self.dtype, device=device)
        # [2, 1, heads, 1]: where the rows of keys and of values, and of each head, begin.
        sides = torch.arange(2, device=device).view(2, 1, 1, 1) * (num_pages * heads)
        self._begins = sides + torch.arange(heads, device=device).view(1, 1, heads, 1)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that a page is made of: tensors ``[layers, 2, pages, ...]``."""
        return (self.kv,)

    def pages_for(self, tokens: _Count) -> _Count:
        """Return how many pages hold ``tokens`` tokens; of an array, for each."""
        return -(-tokens // self.page_size)

    def check(self, piece: SliceLayout) -> None:
        """Raise ``InternalError`` if a slice is empty or its page table too short."""
        needed = self.pages_for(piece.start + piece.count)
        if piece.count < 1 or piece.start < 0 or len(piece.pages) < needed:
            raise InternalError(
                f"A slice of {piece.count} tokens at {piece.start} needs {needed} pages, "
                f"its table has {len(piece.pages)}."
            )

    def table(self, pages: list[list[int]]) -> torch.Tensor:
        """Return page ids ``[items, pages]`` as a tensor.

        Raises:
            InternalError: a page id is not in the pool.
        """
        table = torch.tensor(pages, dtype=torch.int64, device=self.kv.device)
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < self.num_pages:
            raise InternalError(f"A page table leaves the pool of {self.num_pages} pages.")
        return table

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        """Return the flat rows ``[2 * items * kv heads * pages]`` of a page table."""
        return (self._begins + table[:, None, :] * self.heads).flatten()

    def slots(self, layout: BatchLayout) -> torch.Tensor:
        """Return where each token's head vectors go, ``[2, tokens * kv heads]``.

        Raises:
            InternalError: a page id is not in the pool.
        """
        size = self.page_size
        pages, offsets = [], []
        for piece in layout.slices:
            for position in range(piece.start, piece.start + piece.count):
                pages.append(piece.pages[position // size])
                offsets.append(position % size)
        offset = torch.tensor(offsets, dtype=torch.int64, device=self.kv.device)
        return self.slots_at(self.table([pages])[0], offset)

    def slots_at(self, pages: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the slots ``[2, tokens * kv heads]`` of tokens at offsets in pages, int64."""
        # One slot is head_dim wide, so a row of the flat view holds page_size of them.
        rows = self._begins[:, 0, :, 0].unsqueeze(1) + pages[:, None] * self.heads
        return (rows * self.page_size + offsets[:, None]).flatten(1)

    def store(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write ``k, v [tokens, kv heads, head dim]`` to ``slots``."""
        flat = self.kv[layer].view(-1, self.dim)
        flat.index_copy_(0, slots[0], k.reshape(-1, self.dim))
        flat.index_copy_(0, slots[1], v.reshape(-1, self.dim))

    def reserve(self, rows: int) -> None:
        """Make the scratch large enough to gather ``rows`` rows at once."""
        if self._scratch.shape[0] < rows:
            shape = (rows, self.page_size * self.dim)
            self._scratch = torch.empty(shape, dtype=self.dtype, device=self.kv.device)

    def gather(
        self, layer: int, rows: torch.Tensor, items: int, unwritten: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy rows to the scratch; return keys and values ``[items, kv heads, tokens, head dim]``.

        They are overwritten by the next call. ``unwritten`` comes from :meth:`unwritten`.
        """
        buffer = self._scratch[: rows.numel()]
        self._pick(layer, rows, buffer)
        if unwritten is not None:
            buffer.view(-1, self.dim).index_fill_(0, unwritten, 0.0)
        keys, values = buffer.view(2, items, self.heads, -1, self.dim)
        return keys, values

    def _pick(self, layer: int, rows: torch.Tensor, buffer: torch.Tensor) -> None:
        """Gather rows into ``buffer [rows, page * head dim]``."""
        torch.index_select(self.kv[layer].view(-1, self.page_size * self.dim), 0, rows, out=buffer)

    def taken(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """Return a new tensor ``[rows, page * head dim]`` of gathered rows."""
        return self.kv[layer].view(-1, self.page_size * self.dim)[rows]

    def unwritten(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return which vectors of a gathering are to be zeroed, given tokens ``[items, tokens]``.

        A page's unwritten end holds what its last owner left there. A mask makes its weight zero,
        but zero times NaN is NaN: a broken sequence must not break those that reuse its pages.
        """
        return hidden[None, :, None].expand(2, -1, self.heads, -1).flatten().nonzero().squeeze(1)

    def mask(self, hidden: torch.Tensor, value: float) -> torch.Tensor:
        """Return a mask to add to scores: ``value`` where ``hidden``, zero elsewhere."""
        empty = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return empty.masked_fill_(hidden, value)


class PagedBase:
    """Attention over a pool: what it says of its pages."""

    _pool: PagePool

    @property
    def kv(self) -> torch.Tensor:
        """Return keys and values, ``[layers, 2, pages, kv heads, page, head dim]``."""
        return self._pool.kv

    @property
    def page_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all that a page is made of: tensors ``[layers, 2, pages, ...]``."""
        return self._pool.tensors

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        return self._pool.num_pages

    @property
    def page_size(self) -> int:
        """Return how many tokens a page holds."""
        return self._pool.page_size
