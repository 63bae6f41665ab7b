"""Paged attention by the Triton kernels. Its pages are laid out as those of the torch path.

A step is a few work lists: single tokens, short slices and long ones go through tiles of their own,
whatever order they have in the batch. All that a step needs to know goes to the device as one
array of int32; nothing comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import BatchLayout, DecodeBuffers
from agentrt.engine.attention.pool import PagedBase, PagePool
from agentrt.engine.attention.quantized import QuantizedPool, make_pool
from agentrt.engine.attention.reader import LayoutReader
from agentrt.engine.model.config import ModelShape
from agentrt.engine.triton.attend import attend
from agentrt.engine.triton.configs import CONFIGS, Configs, Kind, tile_config
from agentrt.engine.triton.decode import plan_decode
from agentrt.engine.triton.device import check_device, multiprocessors
from agentrt.engine.triton.extend import ITEM, MERGE, Slices, extra_parts, plan_work
from agentrt.engine.triton.store import rotate_store, store
from agentrt.engine.triton.work import LayerPages, Packed, Sent, Tile, Work
from agentrt.errors import InternalError

__all__ = ["TritonPagedAttention", "TritonStep"]

LEAST_KEYS = 512
"""Fewest keys of a part of an extend: less is not worth merging as many rows."""


class TritonPagedAttention(PagedBase):
    """Attention of one model over a pool of pages that it owns.

    Args:
        config: the model's shape; any head dim that is a multiple of 16.
        num_pages: pages in the pool; their memory is taken at once.
        page_size: tokens a page holds.
        dtype: of keys and values: the model's.
        device: where they live: CUDA, or the CPU in Triton's interpreter.
        kv_dtype: what they are kept as: ``auto`` (as they are), ``int8`` or ``fp8``.
        processors: that sequences are split over; None asks the device.
        configs: block sizes.

    Raises:
        ConfigError: the kernels cannot run on ``device``, or there is no such ``kv_dtype``.
    """

    def __init__(
        self,
        config: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cuda",
        kv_dtype: str = "auto",
        *,
        processors: int | None = None,
        configs: Configs = CONFIGS,
    ) -> None:
        self._device = torch.device(device)
        check_device(self._device, kv_dtype)
        self._pool = make_pool(config, num_pages, page_size, dtype, device, kv_dtype)
        self._windows = [window or 0 for window in config.windows]
        self._layers = _layers(self._pool)
        self._reader = LayoutReader(self._pool)
        self._extra = extra_parts(self._pool.heads, processors or multiprocessors(self._device))
        self._tiles = _Tiles(config, _kept(dtype, kv_dtype), configs)
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def plan(self, layout: BatchLayout) -> TritonStep:
        """Prepare one step over ``layout``, as the protocol ``Attention`` says."""
        read = self._reader.read(layout)
        slices = Slices(read.row, read.start, read.count, read.table)
        packed = Packed()
        slots, table = packed.add(read.slots), packed.add(read.pages)
        kinds = list(self._tiles.by_kind(read.count))
        makers = {
            window: [self._work(packed, slices, kind, chosen, window) for kind, chosen in kinds]
            for window in dict.fromkeys(self._windows)
        }
        sent = packed.send(self._device)
        works = {window: [make(sent) for make in every] for window, every in makers.items()}
        by_layer = [works[window] for window in self._windows]
        return TritonStep(self._layers, sent(table), sent(slots), by_layer)

    def plan_decode(self, buffers: DecodeBuffers) -> TritonStep:
        """Prepare steps over ``buffers``, as the protocol ``StaticAttention`` says.

        Raises:
            InternalError: the buffers are not int32, of one batch, or not contiguous here.
        """
        self._check(buffers)
        batch, device = len(buffers.lengths), self._device
        slots = torch.full((batch,), -1, dtype=torch.int32, device=device)
        works: dict[int, list[Work]] = {}
        for window in dict.fromkeys(self._windows):
            tile = self._tiles.make("decode", window)
            items = torch.zeros((batch + self._extra, ITEM), dtype=torch.int32, device=device)
            merges = torch.zeros((batch, MERGE), dtype=torch.int32, device=device)
            parts, lses = self._shared_parts(len(items), tile)
            works[window] = [Work(tile, items, merges, parts, lses)]
        refresh = _Refresh(buffers, slots, works, self._extra, self.page_size)
        by_layer = [works[window] for window in self._windows]
        return TritonStep(self._layers, buffers.pages, slots, by_layer, refresh)

    def _work(
        self,
        packed: Packed,
        slices: Slices,
        kind: Kind,
        chosen: NDArray[np.bool_],
        window: int,
    ) -> Callable[[Sent], Work]:
        """Plan slices of one kind; return what makes their work once it was sent."""
        tile = self._tiles.make(kind, window)
        block = tile.config.keys
        planned = plan_work(
            slices.pick(chosen),
            tile=tile.tokens,
            window=window,
            extra=self._extra,
            block=block,
            least=LEAST_KEYS if tile.causal else block,
        )
        items, merges = packed.add(planned.items), packed.add(planned.merges)

        def make(sent: Sent) -> Work:
            parts, lses = self._parts(planned.parts, tile)
            return Work(tile, sent(items), sent(merges), parts, lses)

        return make

    def _parts(self, count: int, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, self._pool.heads, tile.rows)
        parts = torch.empty((*shape, self._pool.dim), dtype=torch.float32, device=self._device)
        return parts, torch.empty(shape, dtype=torch.float32, device=self._device)

    def _shared_parts(self, count: int, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        """Return room for parts that all static steps share: no two of them run at once."""
        if self._room is None or len(self._room[0]) < count:
            self._room = self._parts(count, tile)
        return self._room

    def _check(self, buffers: DecodeBuffers) -> None:
        lengths, pages = buffers.lengths, buffers.pages
        for one, dims in ((lengths, 1), (pages, 2)):
            right = one.dtype == torch.int32 and one.dim() == dims and one.is_contiguous()
            if not right or one.device.type != self._device.type or len(one) != len(lengths):
                raise InternalError(
                    f"Decode buffers are contiguous int32 [B] and [B, pages] on {self._device}, "
                    f"not {one.dtype} {list(one.shape)} on {one.device}."
                )


class TritonStep:
    """One planned batch over a :class:`TritonPagedAttention`."""

    def __init__(
        self,
        layers: Sequence[LayerPages],
        table: torch.Tensor,
        slots: torch.Tensor,
        works: Sequence[Sequence[Work]],
        refresh: Callable[[], None] | None = None,
    ) -> None:
        self._layers = layers
        self._table = table
        self._slots = slots
        self._works = works
        self._refresh = refresh

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store keys and values, then attend, as the protocol ``AttentionStep`` says."""
        self._begin(layer)
        store(_dense(k), _dense(v), self._slots, self._layers[layer])
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
        self._begin(layer)
        pages = self._layers[layer]
        rotate_store(heads, norm, eps, rotation, self._slots, pages)
        return self._attend(layer, heads[:, : -2 * pages.keys.shape[1]])

    def _begin(self, layer: int) -> None:
        if layer == 0 and self._refresh is not None:
            self._refresh()

    def _attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for work in self._works[layer]:
            attend(self._layers[layer], self._table, work, q, out)
        return out


@dataclass(frozen=True, slots=True)
class _Refresh:
    """Writes the work lists of a static step anew from what its buffers hold now."""

    buffers: DecodeBuffers
    slots: torch.Tensor
    works: dict[int, list[Work]]
    extra: int
    page_size: int

    def __call__(self) -> None:
        for window, works in self.works.items():
            for work in works:
                plan_decode(
                    self.buffers.lengths,
                    self.buffers.pages,
                    self.slots,
                    work.items,
                    work.merges,
                    extra=self.extra,
                    block=work.tile.config.keys,
                    page_size=self.page_size,
                    window=window,
                )


class _Tiles:
    """Which tiles a slice is cut into, by how many tokens it has."""

    def __init__(self, config: ModelShape, kept: str, configs: Configs) -> None:
        self._group = config.num_heads // config.num_kv_heads
        self._configs = {
            kind: tile_config(kind, kept, self._group, config.head_dim, configs)
            for kind in ("decode", "short", "long")
        }

    def make(self, kind: Kind, window: int) -> Tile:
        """Return the tile of a kind."""
        return Tile(self._configs[kind], self._group, window, causal=kind != "decode")

    def by_kind(self, count: NDArray[np.int64]) -> Iterator[tuple[Kind, NDArray[np.bool_]]]:
        """Yield each kind that there is, and which slices ``count`` tokens long are of it."""
        short = self.make("short", 0).tokens
        single, long = count == 1, count > max(short, 1)
        kinds: list[tuple[Kind, NDArray[np.bool_]]] = [
            ("decode", single),
            ("short", ~single & ~long),
            ("long", ~single & long),
        ]
        for kind, chosen in kinds:
            if chosen.any():
                yield kind, chosen


def _kept(dtype: torch.dtype, kv_dtype: str) -> str:
    """Return what the table of configurations calls this combination."""
    if dtype == torch.float32:
        return "wide"
    return "half" if kv_dtype == "auto" else kv_dtype


def _layers(pool: PagePool) -> list[LayerPages]:
    scales = pool.scales if isinstance(pool, QuantizedPool) else None
    layers = []
    for index, layer in enumerate(pool.kv.unbind(0)):
        sides = (None, None) if scales is None else scales[index].unbind(0)
        layers.append(LayerPages(*layer.unbind(0), *sides))
    return layers


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return ``x [T, heads, dim]`` with each vector's numbers next to each other."""
    return x if x.stride(2) == 1 else x.contiguous()
