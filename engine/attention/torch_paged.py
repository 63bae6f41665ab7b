"""Paged attention in plain torch: the CPU path, and what later kernels are checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from agentrt.engine.attention.base import BatchLayout, DecodeBuffers, SliceLayout
from agentrt.engine.attention.decode import DecodePlan
from agentrt.engine.attention.extend import ExtendPlan
from agentrt.engine.attention.pool import PagedBase, PagePool
from agentrt.engine.attention.quantized import make_pool
from agentrt.engine.attention.static import StaticDecode
from agentrt.engine.model.config import ModelShape

__all__ = ["TorchPagedAttention", "TorchPagedStep"]

CHUNK = 512
"""Tokens of a sequence gathered at once, rounded down to whole pages (but at least one)."""


class TorchPagedAttention(PagedBase):
    """Attention of one model over a pool of pages that it owns.

    Args:
        config: the model's shape.
        num_pages: pages in the pool; their memory is taken at once.
        page_size: tokens a page holds.
        dtype: of keys and values: the model's.
        device: where they live.
        kv_dtype: what they are kept as: ``auto`` (as they are), ``int8`` or ``fp8``.
    """

    def __init__(
        self,
        config: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        kv_dtype: str = "auto",
    ) -> None:
        self._windows = config.windows
        self._pool = make_pool(config, num_pages, page_size, dtype, device, kv_dtype)
        self._chunk = max(1, CHUNK // page_size) * page_size

    def plan(self, layout: BatchLayout) -> TorchPagedStep:
        """Prepare one step over ``layout``, as the protocol ``Attention`` says."""
        for piece in layout.slices:
            self._pool.check(piece)
        plans = {window: self._plan(layout, window) for window in dict.fromkeys(self._windows)}
        return TorchPagedStep(self._pool, self._windows, plans, self._pool.slots(layout))

    def plan_decode(self, buffers: DecodeBuffers) -> StaticDecode:
        """Prepare steps over buffers, as the protocol ``StaticAttention`` says."""
        return StaticDecode(self._pool, self._windows, buffers, self._chunk)

    def _plan(self, layout: BatchLayout, window: int | None) -> _Plans:
        singles: list[SliceLayout] = []
        rows: list[int] = []
        extends: list[ExtendPlan] = []
        first = 0
        for piece in layout.slices:
            if piece.count == 1:
                singles.append(piece)
                rows.append(first)
            else:
                extends.append(ExtendPlan(self._pool, piece, first, window, self._chunk))
            first += piece.count
        decode = DecodePlan(self._pool, singles, rows, window, self._chunk) if singles else None
        return _Plans(decode, extends)


@dataclass(frozen=True, slots=True)
class _Plans:
    """A batch planned for one window size."""

    decode: DecodePlan | None
    extends: Sequence[ExtendPlan]


class TorchPagedStep:
    """One planned batch over a :class:`TorchPagedAttention`."""

    def __init__(
        self,
        pool: PagePool,
        windows: Sequence[int | None],
        plans: Mapping[int | None, _Plans],
        slots: torch.Tensor,
    ) -> None:
        self._pool = pool
        self._windows = windows
        self._plans = plans
        self._slots = slots

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store keys and values, then attend, as the protocol ``AttentionStep`` says."""
        self._pool.store(layer, self._slots, k, v)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        plans = self._plans[self._windows[layer]]
        if plans.decode is not None:
            plans.decode.attend(layer, q, out)
        for extend in plans.extends:
            extend.attend(layer, q, k, v, out)
        return out
