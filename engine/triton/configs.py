"""Block sizes, warps and pipeline stages: a table, chosen by reasoning for H100 and H200.

The reasons, at head dim 128 in bf16 on 132 multiprocessors with 227 KiB of shared memory each:

- ``decode`` waits for memory alone. 3.35 TB/s at about 1 us of latency are 25 KiB in flight for
  each multiprocessor. A block of 64 tokens is 16 KiB of keys and as much of values; three stages
  keep two blocks of both, 70 KiB, so that three programs fit a multiprocessor. 16 rows are the
  least that a matrix product takes; a smaller group of heads is padded.
- ``short`` is for turns of few new tokens over a long prefix, and for drafts: 64 rows are one
  warp group's product, and more would compute padding.
- ``long`` is for prefill, which waits for the matrix units: 128 rows on two warp groups keep the
  accumulator at 64 registers a thread, and a step of 64 keys leaves room for three stages.
- Twice the head dim halves the keys of a block: what a block takes stays the same.
- int8 takes registers for its scales: fewer keys, or more threads, keep them from spilling.
- fp32 is there for tests of exactness. Without tensor cores a product keeps its operands in
  registers, so its blocks are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

__all__ = ["CONFIGS", "Configs", "Kind", "TileConfig", "next_power", "tile_config"]

Kind: TypeAlias = Literal["decode", "short", "long"]


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a kernel is cut: queries and keys of a tile, warps, and stages of its pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


Configs: TypeAlias = Mapping[tuple[Kind, str], TileConfig]
"""By kind and by what keys and values are kept as: ``wide`` is fp32, ``half`` bf16 or fp16."""

CONFIGS: Configs = {
    ("decode", "half"): TileConfig(rows=16, keys=64, warps=4, stages=3),
    ("decode", "fp8"): TileConfig(rows=16, keys=64, warps=4, stages=4),
    ("decode", "int8"): TileConfig(rows=16, keys=32, warps=4, stages=4),
    ("decode", "wide"): TileConfig(rows=16, keys=16, warps=4, stages=1),
    ("short", "half"): TileConfig(rows=64, keys=64, warps=4, stages=3),
    ("short", "fp8"): TileConfig(rows=64, keys=64, warps=4, stages=3),
    ("short", "int8"): TileConfig(rows=64, keys=32, warps=4, stages=3),
    ("short", "wide"): TileConfig(rows=16, keys=16, warps=4, stages=1),
    ("long", "half"): TileConfig(rows=128, keys=64, warps=8, stages=3),
    ("long", "fp8"): TileConfig(rows=128, keys=64, warps=8, stages=3),
    ("long", "int8"): TileConfig(rows=128, keys=32, warps=8, stages=3),
    ("long", "wide"): TileConfig(rows=16, keys=16, warps=4, stages=1),
}

USUAL_DIM = 128
LEAST_KEYS = 16


def next_power(number: int) -> int:
    """Return the least power of two that is no less than ``number``."""
    return 1 << max(0, number - 1).bit_length()


def tile_config(
    kind: Kind, kept: str, group: int, dim: int, configs: Configs = CONFIGS
) -> TileConfig:
    """Return the configuration of one kind of work.

    Args:
        kind: what the tiles are for.
        kept: ``wide``, ``half``, ``int8`` or ``fp8``: what pages hold.
        group: query heads of a kv head; a tile holds at least one token's. Many take more rows
            and warps than the table says.
        dim: of a head.
        configs: the table.
    """
    config = configs[kind, kept]
    fewer = max(1, next_power(dim) // USUAL_DIM)
    keys = max(LEAST_KEYS, config.keys // fewer)
    rows = max(config.rows, next_power(group))
    return replace(config, rows=rows, keys=keys, warps=max(config.warps, min(8, rows // 16)))
