"""Text of tokens as they come: never half a character, and in the end the same as all at once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

__all__ = ["ByteDetokenizer", "ByteTable", "Detokenizer", "WindowDetokenizer"]

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """One output's text, piece by piece."""

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is now certain, maybe none."""
        ...

    def flush(self) -> str:
        """Return what is held back, an incomplete character as U+FFFD; ends the output."""
        ...


class ByteTable:
    """The bytes that each token of a byte-level vocabulary stands for.

    Args:
        token: the vocabulary's name of a token id, None if there is no such id.
        skipped: special tokens, which stand for no text.
    """

    def __init__(self, token: Callable[[int], str | None], skipped: frozenset[int]) -> None:
        self._token = token
        self._skipped = skipped
        self._bytes = _byte_of_character()
        self._known: dict[int, bytes] = {}

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``; unknown and special ones have none."""
        known = self._known
        return b"".join([known[i] if i in known else self._learn(i) for i in ids])

    def _learn(self, token_id: int) -> bytes:
        name = None if token_id in self._skipped or token_id < 0 else self._token(token_id)
        self._known[token_id] = self._spell(name or "")
        return self._known[token_id]

    def _spell(self, name: str) -> bytes:
        table = self._bytes
        if all(character in table for character in name):
            return bytes([table[character] for character in name])
        return name.encode()  # an added token, stored as its text


def _byte_of_character() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if chr(byte) not in table]
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class ByteDetokenizer:
    """For byte-level vocabularies: an incremental UTF-8 decoder over the tokens' bytes."""

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is now certain, maybe none."""
        return self._decoder.decode(self._table.bytes_of(ids))

    def flush(self) -> str:
        """Return what is held back, an incomplete character as U+FFFD; ends the output."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other vocabularies: decodes the last few tokens again with each new one.

    The window starts at a token whose text is certain, so that what a decoder does at the start of
    a text (dropping a space) is done in both decodings and cancels out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._certain = 0  # tokens of the window whose text is out
        self._out = ""  # that text
        self._first = True

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is now certain, maybe none."""
        return "".join([self._one(token) for token in ids])

    def _one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._out):
            return ""  # perhaps the first bytes of a character
        return self._advance(text)

    def _advance(self, text: str) -> str:
        new = text[len(self._out) :]
        self._window = self._window[self._certain :]
        self._certain = len(self._window)
        self._out = self._decode(self._window)
        return new

    def flush(self) -> str:
        """Return what is held back, an incomplete character as U+FFFD; ends the output."""
        held = self._decode(self._window)[len(self._out) :]
        self._window, self._certain, self._out = [], 0, ""
        return held
