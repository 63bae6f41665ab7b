"""The book as an admission sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrt.scheduling.book import Book
from agentrt.scheduling.views import ProgramView, TurnView

__all__ = ["Pool"]


class Pool:
    """A :class:`~agentrt.scheduling.views.PoolView` of a book. Counts are tokens."""

    def __init__(self, book: Book) -> None:
        self._book = book

    @property
    def capacity(self) -> int:
        """Tokens of the whole pool."""
        return self._book.kv.total * self._book.kv.page_size

    @property
    def available(self) -> int:
        """Tokens of pages that are free, or cached and leased by nobody."""
        return self._book.kv.available() * self._book.kv.page_size

    @property
    def pinned(self) -> int:
        """Tokens of pages under pins; an upper bound where pins share pages."""
        return self._book.pins.pages * self._book.kv.page_size

    @property
    def running(self) -> Sequence[TurnView]:
        """The turns that run."""
        return self._book.running

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        return len(self._book.waiting)

    @property
    def max_wait(self) -> float:
        """Seconds after which a waiting turn outranks pins and every younger turn."""
        return self._book.config.max_wait

    @property
    def programs(self) -> Mapping[str, ProgramView]:
        """Programs by id."""
        return self._book.programs

    def cached(self, turn: TurnView) -> int:
        """Return how many tokens of a waiting turn's prompt are in the pool."""
        state, page = self._book.turns[turn.turn_id], self._book.kv.page_size
        keys = state.request.tokens.page_keys(page, (state.length - 1) // page)
        return self._book.kv.match(keys) * page
