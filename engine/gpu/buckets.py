"""Batch sizes that decode graphs are made for. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["batch_buckets", "bucket_for"]

_SMALL = (1, 2, 4, 8, 16, 24)
_STEP = 32


def batch_buckets(most: int) -> tuple[int, ...]:
    """Return the sizes for batches of up to ``most`` sequences, ascending; ``most`` is the last.

    1, 2, 4, 8, 16, 24, 32, 48, 64, then every 32: padding costs a step little, as steps of similar
    size take similar time, and each size costs memory and time at the start.
    """
    sizes = (*_SMALL, _STEP, 48, *range(2 * _STEP, most, _STEP))
    return (*(size for size in sizes if size < most), most)


def bucket_for(buckets: Sequence[int], rows: int) -> int | None:
    """Return the smallest of ascending ``buckets`` with room for ``rows``; None if none has."""
    place = bisect_left(buckets, rows)
    return buckets[place] if place < len(buckets) else None
