"""Guessing what comes next from what was read: the tokens that followed the last ones before.

Agents repeat what they have just read: code, paths, commands. So the best guess for what follows
the last few tokens is what followed them at an earlier place. No torch here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["LONGEST_MATCH", "Match", "NgramIndex"]

_PLACES = 16
"""Places that are compared, newest first."""
LONGEST_MATCH = 32
"""Tokens of a match that are told apart; a longer one is as good."""


class Match(NamedTuple):
    """Where the newest tokens stood before: ``next`` is the place of the token that followed."""

    next: int
    length: int


class NgramIndex:
    """Finds where the newest tokens of a growing list stood before. It keeps no tokens itself.

    Every call passes the same list, which may only have grown. A call costs time for the tokens
    that are new to it, and for a few comparisons.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], int] = {}
        # For each place, the one before it at which the same two tokens ended; -1 for none.
        self._before = array("i", [-1])

    def find(self, ids: Sequence[int]) -> Match | None:
        """Return the longest match of at least two tokens, the latest of equally long ones."""
        self._take_up(ids)
        found = [Match(place + 1, _common(ids, place)) for place in self._places(ids)]
        return max(found, key=lambda match: (match.length, match.next), default=None)

    def _take_up(self, ids: Sequence[int]) -> None:
        """Note every pair of tokens but the last one, which is the one to be looked for."""
        known, newest, before = len(self._before), self._newest, self._before
        for place, pair in enumerate(pairwise(ids[known - 1 : -1]), known):
            before.append(newest.get(pair, -1))
            newest[pair] = place

    def _places(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield where the last two tokens ended earlier, the newest place first."""
        if len(ids) < 2:
            return
        place = self._newest.get((ids[-2], ids[-1]), -1)
        for _ in range(_PLACES):
            if place < 0:
                return
            yield place
            place = self._before[place]


def _common(ids: Sequence[int], place: int) -> int:
    """Return how many tokens up to ``place`` are those at the end of the list."""
    last = len(ids) - 1
    most = min(LONGEST_MATCH, place + 1)
    for length in range(most):
        if ids[place - length] != ids[last - length]:
            return length
    return most
