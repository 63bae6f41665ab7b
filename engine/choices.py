"""Closed sets of answers: which tokens may come next so that the output is exactly one of them.

No torch and no tokenizer here. What is kept is the token path of every choice; a node of the trie
that they form is the set of paths that begin with the output so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from agentrt.errors import InternalError, InvalidRequest

__all__ = [
    "ChoiceCursor",
    "ChoiceTokenizer",
    "ChoiceTrie",
    "check_encoded",
    "encode_choices",
    "shortened",
]

_SHOWN = 40
"""Characters of a choice that an error message shows."""


class ChoiceTokenizer(Protocol):
    """What encoding choices needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...


@dataclass(frozen=True, slots=True)
class ChoiceTrie:
    """The token paths of a closed set of answers. Made by :meth:`of`.

    A turn ends with the last token of a path that no longer path continues. Where one does, the
    tokens ``ends`` are allowed besides its next token, and one of them ends the turn there.
    """

    paths: tuple[tuple[int, ...], ...]
    """One for each choice; distinct, none empty, none with one of ``ends`` in it."""
    ends: tuple[int, ...]
    """The tokens that may end a turn early; empty if no path begins with another."""

    @classmethod
    def of(cls, paths: Iterable[Sequence[int]], ends: Iterable[int] = ()) -> ChoiceTrie:
        """Return the trie of ``paths`` in a model whose end tokens are ``ends``.

        Raises:
            InvalidRequest: no path, an empty one, one twice, one with an end token in it, or one
                that begins with another while there is no end token to tell them apart.
        """
        ordered = sorted(tuple(path) for path in paths)
        stops = tuple(sorted(set(ends)))
        if not ordered or not ordered[0] or len(set(ordered)) < len(ordered):
            raise InvalidRequest(
                "choices need token paths that are distinct and not empty.",
                remedy="Give every choice once, and at least one.",
            )
        if any(not set(stops).isdisjoint(path) for path in ordered):
            raise InvalidRequest(
                "choices hold a token that ends a turn.",
                remedy="Leave the model's end tokens out of the choices; a turn ends by itself.",
            )
        # Sorted, so whatever begins with a path comes right after it.
        nested = any(b[: len(a)] == a for a, b in pairwise(ordered))
        if nested and not stops:
            raise InvalidRequest(
                "choices hold one that begins with another, and the model has no end token to "
                "tell them apart.",
                remedy="Change the choices so that none begins with another.",
            )
        return cls(tuple(ordered), stops if nested else ())

    @property
    def longest(self) -> int:
        """The number of output tokens that is enough for every choice, its end included."""
        return max(map(len, self.paths))

    def tokens(self) -> list[int]:
        """Return every token that may come out, each once."""
        return sorted({token for path in self.paths for token in path} | set(self.ends))


class ChoiceCursor:
    """Where a turn is among its choices: a function of its output tokens and of nothing else.

    Raises:
        InternalError: ``output`` leads out of the trie.
    """

    __slots__ = ("_depth", "_ends", "_left", "allowed")

    allowed: tuple[int, ...]
    """The tokens that may come next, each once; empty when the output is complete."""

    def __init__(self, trie: ChoiceTrie, output: Iterable[int] = ()) -> None:
        self._ends = trie.ends
        self._left: Sequence[tuple[int, ...]] = trie.paths
        self._depth = 0
        self.allowed = self._following()
        for token in output:
            self.push(token)

    @property
    def done(self) -> bool:
        """Whether the output is one of the choices and has ended."""
        return not self.allowed

    @property
    def only(self) -> int | None:
        """The token that must come next, None if there are several or none."""
        return self.allowed[0] if len(self.allowed) == 1 else None

    def push(self, token: int) -> None:
        """Take the next output token.

        Raises:
            InternalError: it is not allowed.
        """
        if token not in self.allowed:
            raise InternalError(f"Token {token} leads out of the turn's choices.")
        depth = self._depth
        # An end token is in no path: then nothing is left, and nothing may follow.
        self._left = [path for path in self._left if path[depth : depth + 1] == (token,)]
        self._depth += 1
        self.allowed = self._following()

    def foresee(self, guess: Sequence[int]) -> Sequence[int]:
        """Return the tokens that must come next, else the part of a guess that may come."""
        ahead = self._copy()
        forced: list[int] = []
        while (token := ahead.only) is not None:
            ahead.push(token)
            forced.append(token)
        if forced:
            return forced
        legal = 0
        while legal < len(guess) and guess[legal] in ahead.allowed:
            ahead.push(guess[legal])
            legal += 1
        return guess[:legal]

    def _copy(self) -> ChoiceCursor:
        copy = ChoiceCursor.__new__(ChoiceCursor)
        copy._ends, copy._left, copy._depth = self._ends, self._left, self._depth
        copy.allowed = self.allowed
        return copy

    def _following(self) -> tuple[int, ...]:
        depth = self._depth
        following = {path[depth]: None for path in self._left if len(path) > depth}
        if following and any(len(path) == depth for path in self._left):
            return (*following, *self._ends)
        return tuple(following)


def encode_choices(
    choices: Sequence[str], tokenizer: ChoiceTokenizer, ends: frozenset[int]
) -> ChoiceTrie:
    """Return the trie of texts, each cut into tokens as the tokenizer cuts it.

    Raises:
        InvalidRequest: a text cannot be spelt exactly in the model's tokens, holds an end token, or
            begins with another while the model has no end token.
    """
    return ChoiceTrie.of((_encode(text, tokenizer, ends) for text in choices), ends)


def check_encoded(choices: Sequence[str] | None, trie: ChoiceTrie | None) -> None:
    """Check that choices come with their tokens: without, they would be ignored.

    Raises:
        InternalError: there are choices, but no trie of them.
    """
    if choices is not None and trie is None:
        raise InternalError("A turn with choices was opened without their tokens.")


def _encode(text: str, tokenizer: ChoiceTokenizer, ends: frozenset[int]) -> list[int]:
    path = tokenizer.encode(text)
    spelt = tokenizer.decode(path)
    if spelt != text:
        raise InvalidRequest(
            f"choices hold {shortened(text)}, which the model's tokens spell {shortened(spelt)}.",
            remedy="Write the choice with other characters, without names of special tokens.",
        )
    if not ends.isdisjoint(path):
        raise InvalidRequest(
            f"choices hold {shortened(text)}, and a token of it ends a turn.",
            remedy="Leave the model's end tokens out of the choices; a turn ends by itself.",
        )
    return path


def shortened(text: str) -> str:
    """Return a text in quotes for a message, cut after some 40 characters."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
