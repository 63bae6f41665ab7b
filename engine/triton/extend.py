"""Work lists made on the host: tiles of queries, and their keys split over the processors.

Pure: arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ITEM", "MERGE", "Planned", "Slices", "extra_parts", "plan_work"]

_Ints = NDArray[np.int64]

ITEM = 8
"""Numbers of an item: row, tokens, position, table, low, high, part, and one unused.

``tokens`` queries from batch row ``row`` on, the first of them at ``position``; their page table
begins at ``table`` in the array of page ids; keys ``[low, high)``. ``part`` says where the result
goes as a part, and is -1 where it is whole. No tokens: nothing to do.
"""
MERGE = 4
"""Numbers of a merge: row, tokens, first part, parts. One part is whole; no parts are zeros."""
WAVES = 2
"""Programs for each processor that splitting aims at; that many run beside each other."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices of a batch as arrays ``[n]``: first row and position, tokens, begin of the table."""

    row: _Ints
    start: _Ints
    count: _Ints
    table: _Ints

    def pick(self, chosen: NDArray[np.bool_]) -> Slices:
        """Return the chosen slices."""
        return Slices(self.row[chosen], self.start[chosen], self.count[chosen], self.table[chosen])


@dataclass(frozen=True, slots=True)
class Planned:
    """Items ``[n, 8]`` and merges ``[m, 4]``, int32; ``parts`` is how many parts they write."""

    items: NDArray[np.int32]
    merges: NDArray[np.int32]
    parts: int


def extra_parts(kv_heads: int, processors: int) -> int:
    """Return how many parts more than tiles there may be.

    A work list holds tiles, or where these are too few or too uneven, their keys in parts of about
    the same length: as many as occupy every processor ``WAVES`` times. It depends on neither the
    batch nor its lengths, so that a captured launch has room for any lengths.
    """
    return max(1, -(-WAVES * processors // kv_heads))


def plan_work(
    slices: Slices, *, tile: int, window: int, extra: int, block: int, least: int
) -> Planned:
    """Cut slices into tiles of ``tile`` tokens, and tiles with many keys into parts.

    Args:
        slices: what to compute; each has at least one token.
        tile: tokens of a tile.
        window: how many tokens back a token sees, itself included; 0 for all.
        extra: from :func:`extra_parts`.
        block: keys that are computed at once; a part is whole blocks.
        least: fewest keys of a part that is worth another program and a merge.

    Returns:
        The work; the longest items come first, so that what ends last is short.
    """
    tiles = -(-slices.count // tile)
    owner, number = _spread(tiles)
    first = number * tile
    row = slices.row[owner] + first
    tokens = np.minimum(slices.count[owner] - first, tile)
    position = slices.start[owner] + first
    low = np.maximum(position - window + 1, 0) if window else np.zeros_like(position)
    high = position + tokens
    visible = high - low
    chunk = -(-max(least, -(-int(visible.sum()) // extra)) // block) * block
    counts = -(-visible // chunk)
    of, index = _spread(counts)
    begin = low[of] + index * chunk
    end = np.minimum(begin + chunk, high[of])
    split = counts > 1
    parts = np.where(split, counts, 0)
    firsts = np.cumsum(parts) - parts
    part = np.where(split[of], firsts[of] + index, -1)
    table = slices.table[owner]
    items = np.stack(
        [row[of], tokens[of], position[of], table[of], begin, end, part, np.zeros_like(part)], 1
    )
    order = np.argsort(begin - end, kind="stable")
    merges = np.stack([row, tokens, firsts, counts], 1)[split]
    return Planned(items[order].astype(np.int32), merges.astype(np.int32), int(parts.sum()))


def _spread(counts: _Ints) -> tuple[_Ints, _Ints]:
    """Return for each of ``counts.sum()`` pieces whose it is, and which of its owner's it is."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
