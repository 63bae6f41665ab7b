"""What attention kernels are launched with: pages, tiles, work lists, and how lists are sent.

What an item and a merge are is said in ``engine/triton/extend.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.triton.configs import TileConfig

__all__ = ["LayerPages", "Packed", "Place", "Sent", "Tile", "Work"]

ALIGNED = 4
"""Numbers of int32 that tables in the packed array are aligned to: 16 bytes, as kernels expect."""


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's keys and values ``[pages, kv heads, page, head dim]``.

    Scales ``[pages, kv heads, page]`` in fp32 come with int8 only.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Tile:
    """How queries are cut: ``tokens`` of a sequence with their ``group`` heads, at one ``window``.

    ``causal`` says whether a tile's tokens see different keys.
    """

    config: TileConfig
    group: int
    window: int
    causal: bool

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return self.config.rows // self.group if self.causal else 1

    @property
    def rows(self) -> int:
        """Rows of a tile that are not padding."""
        return self.tokens * self.group


@dataclass(frozen=True, slots=True)
class Work:
    """A work list on the device, and room for its parts.

    ``items [n, 8]`` and ``merges [m, 4]`` are int32. ``parts [p, kv heads, rows, head dim]`` and
    ``lses [p, kv heads, rows]`` are fp32, and empty where nothing is split.
    """

    tile: Tile
    items: torch.Tensor
    merges: torch.Tensor
    parts: torch.Tensor
    lses: torch.Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table lies in the packed array."""

    begin: int
    shape: tuple[int, ...]


class Packed:
    """Tables of int32 on their way to the device, one after another."""

    def __init__(self) -> None:
        self._tables: list[tuple[int, NDArray[np.integer]]] = []
        self._end = 0

    def add(self, table: NDArray[np.integer]) -> Place:
        """Take a table; returns where it will be."""
        place = Place(self._end, table.shape)
        self._tables.append((self._end, table.reshape(-1)))
        self._end += -(-table.size // ALIGNED) * ALIGNED
        return place

    def send(self, device: torch.device) -> Sent:
        """Start one copy to ``device``; nothing waits for it."""
        pinned = device.type == "cuda"
        # Torch keeps pinned memory from being used again before the copies from it are over.
        staged = torch.empty(self._end, dtype=torch.int32, pin_memory=pinned)
        array = staged.numpy()
        for begin, table in self._tables:
            array[begin : begin + table.size] = table
        return Sent(staged.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class Sent:
    """The packed array on the device."""

    array: torch.Tensor

    def __call__(self, place: Place) -> torch.Tensor:
        """Return a table as a tensor of its own shape."""
        size = int(np.prod(place.shape))
        return self.array[place.begin : place.begin + size].view(place.shape)
