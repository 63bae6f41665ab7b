"""Waiting turns by rank: aged ones first, by age; the others in the policy's order.

A rank is computed when a turn enters and when ``touch`` says that it may have changed, so finding
the head costs O(log n). Only an order that changes by itself (``reorders``) is sorted at each look;
one that changes as a whole now and then tells so by its ``epoch``.
With groups there is a heap for each, and the head is that of the group whose turn it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

from agentrt.scheduling.policy import Groups, Order
from agentrt.scheduling.state import TurnState

__all__ = ["WaitingQueue"]

_Entry: TypeAlias = tuple[Any, int, int, TurnState]
"""Key, the turn's sequence, stamp, turn: sequence and stamp keep turns from being compared."""


class WaitingQueue:
    """The waiting turns. ``max_wait`` is in seconds after a turn's ``submitted``.

    A heap's entry is valid while its stamp is the turn's newest one: turns leave and change their
    rank without a search, and what they leave behind is dropped when it comes up.
    """

    def __init__(
        self,
        order: Order,
        max_wait: float,
        *,
        reorders: bool = False,
        groups: Groups | None = None,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self._order = order
        self._max_wait = max_wait
        self._reorders = reorders
        self._groups = groups
        self._epoch = epoch
        self._ranked_in = 0 if epoch is None else epoch()
        self._entries = 0
        self._waiting: dict[TurnState, int] = {}
        self._rank_stamps: dict[TurnState, int] = {}
        self._ranked: defaultdict[Hashable, list[_Entry]] = defaultdict(list)
        self._young: list[_Entry] = []
        self._aged: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[TurnState]:
        return iter(self._waiting)

    def __contains__(self, turn: TurnState) -> bool:
        return turn in self._waiting

    def add(self, turn: TurnState) -> None:
        """Let a turn wait."""
        self._entries += 1
        self._waiting[turn] = self._entries
        heappush(self._young, (turn.submitted, turn.sequence, self._entries, turn))
        self.touch(turn)

    def touch(self, turn: TurnState) -> None:
        """Rank a turn anew, if it waits."""
        if turn in self._waiting and not self._reorders:
            self._entries += 1
            self._rank_stamps[turn] = self._entries
            heappush(self._ranked[self._group(turn)], self._ranked_entry(turn, self._entries))

    def _group(self, turn: TurnState) -> Hashable:
        return None if self._groups is None else self._groups.group(turn)

    def _ranked_entry(self, turn: TurnState, stamp: int) -> _Entry:
        return (self._order(turn), turn.sequence, stamp, turn)

    def remove(self, turn: TurnState) -> None:
        """Take a turn out.

        Raises:
            KeyError: it does not wait.
        """
        del self._waiting[turn]
        self._rank_stamps.pop(turn, None)

    def aged(self, turn: TurnState, now: float) -> bool:
        """Whether a turn has waited past the bound."""
        return now >= turn.submitted + self._max_wait

    def rank(self, turn: TurnState, now: float) -> tuple[Any, ...]:
        """Return a turn's rank, waiting or not: the smallest goes first."""
        if self.aged(turn, now):
            return (0, turn.submitted, turn.sequence)
        if self._groups is None:
            return (1, self._order(turn), turn.sequence)
        return (1, self._groups.key(self._groups.group(turn)), self._order(turn), turn.sequence)

    def ranked(self, now: float) -> Generator[TurnState, None, None]:
        """Yield waiting turns, best first. Meanwhile only the yielded ones may be removed."""
        self._age(now)
        if self._epoch is not None:
            self._follow(self._epoch())
        yield from _drain(self._aged, self._waiting)
        heaps, stamps = self._ranked, self._rank_stamps
        if self._reorders:
            heaps, stamps = self._ranked_anew(), self._waiting
        young = (
            _drain(heaps[None], stamps)
            if self._groups is None
            else _drain_groups(heaps, stamps, self._groups)
        )
        for turn in young:
            if not self.aged(turn, now):
                yield turn

    def _follow(self, epoch: int) -> None:
        """Rank every turn anew if all ranks have changed."""
        if epoch != self._ranked_in:
            self._ranked_in = epoch
            for turn in self._waiting:
                self.touch(turn)

    def _ranked_anew(self) -> defaultdict[Hashable, list[_Entry]]:
        """Return heaps of all waiting turns, ranked as of now."""
        heaps: defaultdict[Hashable, list[_Entry]] = defaultdict(list)
        for turn, stamp in self._waiting.items():
            heaps[self._group(turn)].append(self._ranked_entry(turn, stamp))
        for heap in heaps.values():
            heapify(heap)
        return heaps

    def _age(self, now: float) -> None:
        """Move turns that have waited past the bound to the aged ones."""
        young, waiting = self._young, self._waiting
        while young and (waiting.get(young[0][3]) != young[0][2] or self.aged(young[0][3], now)):
            entry = heappop(young)
            if waiting.get(entry[3]) == entry[2]:
                heappush(self._aged, entry)

    def next_aging(self, now: float) -> float | None:
        """Return when the next turn ages, if any will."""
        self._age(now)
        return self._young[0][0] + self._max_wait if self._young else None


def _drain(heap: list[_Entry], stamps: Mapping[TurnState, int]) -> Generator[TurnState, None, None]:
    """Yield the turns of valid entries, in order; put back those that still are valid."""
    passed: list[_Entry] = []
    try:
        while heap:
            entry = heappop(heap)
            if stamps.get(entry[3]) == entry[2]:
                passed.append(entry)
                yield entry[3]
    finally:
        for entry in passed:
            if stamps.get(entry[3]) == entry[2]:
                heappush(heap, entry)


def _drain_groups(
    heaps: dict[Hashable, list[_Entry]], stamps: Mapping[TurnState, int], groups: Groups
) -> Generator[TurnState, None, None]:
    """Yield as ``_drain`` does, each time from the group that comes first as of then."""
    passed: list[tuple[Hashable, _Entry]] = []
    try:
        while (group := _first_group(heaps, stamps, groups)) is not None:
            entry = heappop(heaps[group[0]])
            passed.append((group[0], entry))
            yield entry[3]
    finally:
        for name, entry in passed:
            if stamps.get(entry[3]) == entry[2]:
                heappush(heaps[name], entry)
        for name in [name for name, heap in heaps.items() if not heap]:
            del heaps[name]


def _first_group(
    heaps: dict[Hashable, list[_Entry]], stamps: Mapping[TurnState, int], groups: Groups
) -> tuple[Hashable] | None:
    """Return the group that comes first of those with a valid entry; drop the others' entries."""
    best: tuple[Any, ...] | None = None
    found: tuple[Hashable] | None = None
    for name, heap in heaps.items():
        while heap and stamps.get(heap[0][3]) != heap[0][2]:
            heappop(heap)
        # At a tie the order decides, as it would without groups.
        if heap and (best is None or (groups.key(name), *heap[0][:3]) < best):
            best, found = (groups.key(name), *heap[0][:3]), (name,)
    return found
