"""Core: which rows of a batch belong to which adapter. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple, TypeVar

__all__ = ["Group", "group_rows"]

Key = TypeVar("Key", bound=Hashable)


class Group(NamedTuple):
    """The rows of one adapter as ranges ``[start, stop)``, in order, none touching the next."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(stop - start for start, stop in self.ranges)


def group_rows(slices: Iterable[tuple[Key | None, int]]) -> dict[Key, Group]:
    """Group the rows of consecutive slices ``(adapter, rows)`` by adapter, in order of appearance.

    Rows without an adapter are in no group; neighbours of one adapter become one range.
    """
    found: dict[Key, list[tuple[int, int]]] = {}
    first = 0
    for key, count in slices:
        last = first + count
        if key is not None and count:
            ranges = found.setdefault(key, [])
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], last)
            else:
                ranges.append((first, last))
        first = last
    return {key: Group(tuple(ranges)) for key, ranges in found.items()}
