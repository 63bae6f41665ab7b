"""Paged attention in plain torch: the CPU path, and the reading that kernels are checked against.

Per sequence: the pages before a slice are gathered, 512 tokens at a time, into one reused scratch
buffer that stays in the processor's cache; each stretch is attended with the query heads of a
key-value head folded into the query axis, and the stretches are merged by their log-sum-exp. The
slice's own keys need no gathering: they are the diagonal block, the only one with a causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.partial import MASKED, Partial, merge, partial_attention
from agentrt.engine.model.config import ModelConfig
from agentrt.errors import InternalError

__all__ = ["TorchPagedAttention"]

CHUNK = 512
"""Tokens gathered at once, rounded down to whole pages (but at least one)."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Cached tokens ``[low, high)`` of one sequence: which rows to gather, what to mask."""

    rows: torch.Tensor  # into the flat pages: keys of all heads, then values of all heads
    length: int
    mask: torch.Tensor | None  # [count, length], only where a window cuts through


@dataclass(frozen=True, slots=True)
class _Piece:
    """One slice of the batch, planned for one window size."""

    first: int  # row in the batch
    count: int
    stretches: tuple[_Stretch, ...]
    diagonal: torch.Tensor | None  # [count, count] mask where a window cuts through


class TorchPagedAttention:
    """Keys and values of all layers in ``[layers, 2, pages, kv heads, page, head dim]``.

    Args:
        config: the model's shape.
        num_pages: pages in the pool; memory is taken at once.
        page_size: tokens a page holds.
        dtype: of keys and values: the model's.
        device: where they live.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        shape = (
            config.num_layers,
            2,
            num_pages,
            config.num_kv_heads,
            page_size,
            config.head_dim,
        )
        # Zeros, not empty: touching the memory here makes a pool that does not fit fail at start.
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self._chunk_pages = max(1, CHUNK // page_size)
        self._scratch = torch.empty(
            (2 * config.num_kv_heads * self._chunk_pages, page_size * config.head_dim),
            dtype=dtype,
            device=device,
        )

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        return self.kv.shape[2]

    @property
    def page_size(self) -> int:
        """Return how many tokens a page holds."""
        return self.kv.shape[4]

    def plan(self, layout: BatchLayout) -> TorchPagedStep:
        """Prepare one step over ``layout``, as the protocol ``Attention`` says."""
        for piece in layout.slices:
            self._check(piece)
        pieces = {
            window: self._pieces(layout, window) for window in dict.fromkeys(self.config.windows)
        }
        return TorchPagedStep(self, pieces, self._slots(layout))

    def _check(self, piece: SliceLayout) -> None:
        needed = -(-(piece.start + piece.count) // self.page_size)
        if piece.count < 1 or piece.start < 0 or len(piece.pages) < needed:
            raise InternalError(
                f"A slice of {piece.count} tokens at {piece.start} needs {needed} pages, "
                f"its table has {len(piece.pages)}."
            )
        used = piece.pages[:needed]
        if min(used) < 0 or max(used) >= self.num_pages:
            raise InternalError(f"A page table leaves the pool of {self.num_pages} pages.")

    def _slots(self, layout: BatchLayout) -> torch.Tensor:
        """Return the flat row of every (token, head) of the batch: ``[2, T * kv heads]``."""
        size, heads = self.page_size, self.config.num_kv_heads
        firsts = [
            piece.pages[position // size] * heads * size + position % size
            for piece in layout.slices
            for position in range(piece.start, piece.start + piece.count)
        ]
        tokens = torch.tensor(firsts, dtype=torch.int64, device=self.kv.device)
        keys = (tokens[:, None] + torch.arange(heads, device=self.kv.device) * size).flatten()
        return torch.stack((keys, keys + self.num_pages * heads * size))

    def _pieces(self, layout: BatchLayout, window: int | None) -> tuple[_Piece, ...]:
        pieces, first = [], 0
        for piece in layout.slices:
            pieces.append(self._piece(piece, first, window))
            first += piece.count
        return tuple(pieces)

    def _piece(self, piece: SliceLayout, first: int, window: int | None) -> _Piece:
        # A single token gathers itself too: one unmasked stretch instead of a diagonal of one.
        cached = piece.start + 1 if piece.count == 1 else piece.start
        rows = self._rows(piece.pages, cached)
        step = self._chunk_pages * self.page_size
        stretches = [
            self._stretch(rows, piece, low, min(low + step, cached), window)
            for low in range(self._oldest(piece.start, window) // step * step, cached, step)
        ]
        diagonal = None
        if window is not None and window < piece.count:
            diagonal = self._mask(piece, piece.start, piece.start + piece.count, window)
        return _Piece(first, piece.count, tuple(stretches), diagonal)

    @staticmethod
    def _oldest(start: int, window: int | None) -> int:
        """Return the oldest position that the slice's first token sees."""
        return 0 if window is None else max(0, start - window + 1)

    def _rows(self, pages: Sequence[int], cached: int) -> torch.Tensor:
        """Return ``[2, kv heads, pages]``: rows of the flat pages that hold ``cached`` tokens."""
        heads, device = self.config.num_kv_heads, self.kv.device
        needed = -(-cached // self.page_size)
        table = torch.tensor(list(pages)[:needed], dtype=torch.int64, device=device)
        sides = torch.arange(2, device=device) * self.num_pages * heads
        return sides[:, None, None] + torch.arange(heads, device=device)[:, None] + table * heads

    def _stretch(
        self, rows: torch.Tensor, piece: SliceLayout, low: int, high: int, window: int | None
    ) -> _Stretch:
        size = self.page_size
        chosen = rows[:, :, low // size : -(-high // size)].flatten()
        cut = window is not None and low <= piece.start + piece.count - 1 - window
        mask = self._mask(piece, low, high, window) if cut and window is not None else None
        return _Stretch(chosen, high - low, mask)

    def _mask(self, piece: SliceLayout, low: int, high: int, window: int) -> torch.Tensor:
        device = self.kv.device
        query = torch.arange(piece.start, piece.start + piece.count, device=device)[:, None]
        key = torch.arange(low, high, device=device)
        hidden = (key > query) | (key <= query - window)
        mask = torch.zeros(hidden.shape, dtype=self.kv.dtype, device=device)
        return mask.masked_fill_(hidden, MASKED)

    def gather(self, layer: int, stretch: _Stretch) -> torch.Tensor:
        """Return keys and values of a stretch, ``[2, kv heads, length, head dim]``, in scratch."""
        heads, dim = self.config.num_kv_heads, self.config.head_dim
        buffer = self._scratch[: stretch.rows.numel()]
        flat = self.kv[layer].view(-1, self.page_size * dim)
        torch.index_select(flat, 0, stretch.rows, out=buffer)
        return buffer.view(2, heads, -1, dim)[:, :, : stretch.length]


class TorchPagedStep:
    """One planned batch over a :class:`TorchPagedAttention`."""

    def __init__(
        self,
        owner: TorchPagedAttention,
        pieces: Mapping[int | None, tuple[_Piece, ...]],
        slots: torch.Tensor,
    ) -> None:
        self._owner = owner
        self._pieces = pieces
        self._slots = slots

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store keys and values, then attend, as the protocol ``AttentionStep`` says."""
        self._store(layer, k, v)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for piece in self._pieces[self._owner.config.windows[layer]]:
            rows = slice(piece.first, piece.first + piece.count)
            out[rows] = self._attend(layer, piece, q[rows], k[rows], v[rows])
        return out

    def _store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        flat = self._owner.kv[layer].view(-1, k.shape[-1])
        flat.index_copy_(0, self._slots[0], k.reshape(-1, k.shape[-1]))
        flat.index_copy_(0, self._slots[1], v.reshape(-1, v.shape[-1]))

    def _attend(
        self, layer: int, piece: _Piece, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        count, heads, dim = q.shape
        kv_heads = k.shape[1]
        grouped = q.view(count, kv_heads, -1, dim).permute(1, 2, 0, 3)  # [Hkv, G, n, D]
        parts: list[Partial] = []
        if piece.stretches:
            folded = grouped.reshape(1, kv_heads, -1, dim)
            parts = [self._over(layer, stretch, folded) for stretch in piece.stretches]
        if count > 1:
            parts.append(_diagonal(grouped, k, v, piece.diagonal))
        merged = merge(parts).reshape(kv_heads, heads // kv_heads, count, dim)
        return merged.permute(2, 0, 1, 3).reshape(count, heads, dim)

    def _over(self, layer: int, stretch: _Stretch, folded: torch.Tensor) -> Partial:
        keys, values = self._owner.gather(layer, stretch)
        mask = stretch.mask
        if mask is not None:
            mask = mask.repeat(folded.shape[2] // mask.shape[0], 1)
        return partial_attention(folded, keys.unsqueeze(0), values.unsqueeze(0), mask=mask)


def _diagonal(
    grouped: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> Partial:
    """Attend a slice over its own keys; returns the folded shape ``[1, kv heads, G * n, D]``."""
    kv_heads, group, count, dim = grouped.shape
    keys = k.permute(1, 0, 2).unsqueeze(1).expand(kv_heads, group, count, dim)
    values = v.permute(1, 0, 2).unsqueeze(1).expand(kv_heads, group, count, dim)
    out, lse = partial_attention(grouped, keys, values, causal=mask is None, mask=mask)
    return out.reshape(1, kv_heads, -1, dim), lse.reshape(1, kv_heads, -1)
