"""A chat turn that is opened while its last message is still being written."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from agentrt.errors import ProgramTooLarge

if TYPE_CHECKING:
    from agentrt.engine.growing import GrowingPrompt
    from agentrt.engine.opened import OpenTurn

__all__ = ["OpenChat"]

_logger = logging.getLogger(__name__)


class OpenChat:
    """The prompt of a program's next turn while a tool still writes it; see ``Program.open_chat``.

    What is written is computed meanwhile. It only saves time: the turn that is handed in with
    ``opened=`` answers as it would without. A context manager, which gives it up if no turn took
    it. Belongs to the event loop that it was made in.

    Args:
        prompt: the tokens as they become certain; None if the template does not allow it.
        open_turn: opens the engine's turn with the first of them.
        check_length: refuses a prompt, with so many output tokens, that the model cannot take.
    """

    def __init__(
        self,
        prompt: GrowingPrompt | None,
        open_turn: Callable[[Sequence[int]], OpenTurn],
        check_length: Callable[[int, int], None],
    ) -> None:
        self._prompt = prompt
        self._open_turn = open_turn
        self._check_length = check_length
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._turn: OpenTurn | None = None
        self._count = 0
        self._ended = False
        if prompt is not None:
            self._feed(prompt.tokens)

    def write(self, data: bytes | str) -> None:
        """Append to the content of the last message. Never waits; fits ``exec(on_stdout=…)``.

        Bytes are read as UTF-8, which may be cut anywhere.
        """
        text = data if isinstance(data, str) else self._decoder.decode(data)
        prompt = self._prompt
        if prompt is None or self._ended or not text:
            return
        self._feed(prompt.write(text))
        if prompt.stuck:
            self._stop("it has no place where its tokens are certain to be cut")

    def _feed(self, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        self._count += len(tokens)
        try:
            self._check_length(self._count, 1)
        except ProgramTooLarge as error:
            self._stop(error.message)
            return
        if self._turn is None:
            self._turn = self._open_turn(tokens)
        else:
            self._turn.append(tokens)

    def _stop(self, why: str) -> None:
        _logger.info("The rest of a tool's output is not computed ahead: %s", why)
        self._prompt = None

    def take(self) -> OpenTurn | None:
        """Return the engine's turn, to be sealed, once; None if there is nothing to seal."""
        turn, self._turn, self._ended = self._turn, None, True
        return turn

    def close(self) -> None:
        """Give it up, unless a turn took it. Idempotent."""
        turn = self.take()
        if turn is not None:
            turn.close()

    def __enter__(self) -> OpenChat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
