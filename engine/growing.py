"""Tokens of a prompt whose last message is still being written.

The prompt's final tokens are known only when it is complete: what comes next may be drawn into the
last token so far. So tokens are handed out up to a place where the text's cut is certain: a word
after a line end or a space, where encoding the two sides apart gives what encoding both together
does. Should a tokenizer cut otherwise in the end, the complete prompt differs from there on, and
only that is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["GrowingPrompt"]

LOOK = 256
"""Characters that must have come before a cut is looked for again."""
LONGEST = 32_768
"""Characters without a cut after which no more is handed out: looking would take too long."""


class GrowingPrompt:
    """A prompt up to the content of its last message, and what is certain of that content.

    Args:
        encode: makes tokens of text.
        head: tokens that the text is appended to.
        before: what the template writes between these and the content.
        shared: end tokens that ``head`` has already where it ends with one of them.
        strips: the template drops spaces around the content.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        head: Sequence[int],
        before: str,
        *,
        shared: frozenset[int] = frozenset(),
        strips: bool = False,
    ) -> None:
        self._encode = encode
        self._tokens = list(head)
        self._text = before
        self._joint = bool(head) and head[-1] in shared
        self._shared = shared
        self._strips = strips
        self._looked = 0

    @property
    def tokens(self) -> list[int]:
        """A copy of all tokens that were handed out, the head's included."""
        return list(self._tokens)

    @property
    def stuck(self) -> bool:
        """Whether nothing more comes: the text is long and has no certain cut."""
        return len(self._text) > LONGEST

    def write(self, text: str) -> list[int]:
        """Append to the content; return the tokens that are certain now, maybe none."""
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        self._text += text
        if not self._looked + LOOK <= len(self._text) <= LONGEST:
            return []
        self._looked = len(self._text)
        cut = _last_cut(self._text)
        if cut == 0:
            return []
        left, right = self._encode(self._text[:cut]), self._encode(self._text[cut:])
        if left + right != self._encode(self._text):
            return []
        if self._joint and left and left[0] in self._shared:
            left = left[1:]
        self._joint = False
        self._text = self._text[cut:]
        self._looked = 0
        self._tokens += left
        return left


def _last_cut(text: str) -> int:
    """Return where the last word begins that follows a line end, else a single space; 0: nowhere.

    The space belongs to its word.
    """
    for at in range(len(text) - 1, 0, -1):
        if text[at - 1] == "\n" and text[at].isalnum():
            return at
    for at in range(len(text) - 2, 0, -1):
        if text[at] == " " and text[at + 1].isalpha() and not text[at - 1].isspace():
            return at
    return 0
