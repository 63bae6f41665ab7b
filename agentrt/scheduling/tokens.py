"""Token sources: real tokens for the engine, numbers standing for tokens in a simulation."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Hashable, Sequence

__all__ = ["TokenList", "VirtualTokens"]


class TokenList:
    """Real token ids. ``prompt`` is copied; output is appended by the scheduler at each commit.

    ``namespace``, a negative number, tells keys and values apart that were computed in another way,
    as by a model with an adapter: lists of different namespaces have no page in common.
    """

    def __init__(self, prompt: Sequence[int], namespace: int | None = None) -> None:
        self._ids = list(prompt)
        self._apart = () if namespace is None else (namespace,)
        self._keys: list[tuple[int, ...]] = []
        self._page_size = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[int]:
        """All tokens so far, prompt and output."""
        return self._ids

    def extend(self, tokens: Sequence[int]) -> None:
        """Append output tokens."""
        self._ids.extend(tokens)

    def revise(self, keep: int, tokens: Sequence[int]) -> None:
        """Replace what follows the first ``keep`` tokens."""
        self._ids[keep:] = tokens
        if self._page_size:
            del self._keys[keep // self._page_size :]

    def page_keys(self, page_size: int, count: int) -> Sequence[Hashable]:
        """Return one tuple of token ids for each of the first ``count`` pages.

        The first begins with the namespace, if there is one: pages are found from the first on.
        """
        if page_size != self._page_size:
            self._keys, self._page_size = [], page_size
        ids = self._ids
        for page in range(len(self._keys), count):
            key = tuple(ids[page * page_size : (page + 1) * page_size])
            self._keys.append(key if page else (*self._apart, *key))
        return self._keys[:count]


class VirtualTokens:
    """Tokens that are only counted: a list of segments, each written once by one turn.

    A context's history is ``(end, tag)`` pairs. The prompt of its next turn keeps the first
    ``reused`` tokens of that history and adds new ones under a tag of its own, so two turns share a
    page exactly where one really continued the other. Tokens before ``shared`` may be given a
    common tag, which stands for a system prompt that several programs begin with.
    """

    def __init__(
        self, segments: Sequence[tuple[int, Hashable]], length: int, tag: Hashable
    ) -> None:
        self._ends = [end for end, _ in segments]
        self._tags = [owner for _, owner in segments]
        self._tag = tag
        self._keys = array("q")
        self._page_size = 0
        self._grow(length)

    def _grow(self, length: int) -> None:
        """Add new tokens up to ``length`` under this prompt's tag."""
        self._length = length
        if not self._ends or self._ends[-1] < length:
            self._ends.append(length)
            self._tags.append(self._tag)

    @classmethod
    def first(cls, length: int, tag: Hashable) -> VirtualTokens:
        """Return the prompt of a context's first turn."""
        return cls((), length, tag)

    def follow(self, reused: int, length: int, tag: Hashable) -> VirtualTokens:
        """Return the next prompt: ``reused`` tokens of this history, new ones up to ``length``."""
        kept = min(reused, self._length, length)
        self._close()
        prompt = VirtualTokens((), length, tag)
        if kept:
            # Slices, not a loop: a long program's history has a segment for each of its turns.
            segments = bisect_left(self._ends, kept) + 1
            prompt._ends, prompt._tags = self._ends[:segments], self._tags[:segments]
            prompt._ends[-1] = kept
            prompt._grow(length)
        if self._page_size:
            # The same key objects: comparing histories page by page is then comparing identities.
            prompt._page_size = self._page_size
            prompt._keys = self._keys[: kept // self._page_size]
        return prompt

    def __len__(self) -> int:
        return self._length

    def extend(self, tokens: Sequence[int]) -> None:
        """Append as many output tokens as ``tokens`` has, whatever they are."""
        self._length += len(tokens)

    def _close(self) -> None:
        """Make the segments cover all tokens: output is only counted until somebody asks."""
        if self._ends[-1] == self._length:
            return
        if self._tags[-1] == self._tag:
            self._ends[-1] = self._length
        else:
            self._ends.append(self._length)
            self._tags.append(self._tag)

    def page_keys(self, page_size: int, count: int) -> Sequence[Hashable]:
        """Return a hash of (tag of the page's last token, page number) for each of the pages.

        Hashes in an array, not the pairs: a simulation copies and compares them all the time, and
        copying a list touches every object in it. Two of 64 bits agree by chance never in practice.
        """
        if page_size != self._page_size:
            self._keys, self._page_size = array("q"), page_size
        if len(self._keys) < count:
            self._close()
        for page in range(len(self._keys), count):
            segment = bisect_left(self._ends, (page + 1) * page_size)
            self._keys.append(hash((self._tags[segment], page)))
        return self._keys[:count]
