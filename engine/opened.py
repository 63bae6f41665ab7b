"""A turn that is opened before its input is complete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from agentrt.engine.stream import TurnStream
from agentrt.errors import InvalidRequest

if TYPE_CHECKING:
    from agentrt.engine.engine import EngineRequest

__all__ = ["OpenTurn"]


class _Posts(Protocol):
    """What an open turn needs of the engine's loop."""

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None: ...
    def close_opened(self, turn_id: str) -> None: ...


class OpenTurn:
    """A prompt that grows while it is computed; made by ``Engine.open``, ended by ``seal``.

    It only saves time: the sealed turn answers as it would have without. A context manager, which
    closes it if it was not sealed. Not to be used by several tasks at once.
    """

    def __init__(
        self,
        turn_id: str,
        prompt: Sequence[int],
        posts: _Posts,
        submit: Callable[[EngineRequest, str], Awaitable[TurnStream]],
    ) -> None:
        self.turn_id = turn_id
        self._tokens = list(prompt)
        self._posts = posts
        self._submit = submit
        self._ended = False

    @property
    def tokens(self) -> list[int]:
        """A copy of the prompt so far."""
        return list(self._tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end. Never waits.

        Raises:
            InvalidRequest: the turn is sealed or closed.
        """
        self.revise(len(self._tokens), tokens)

    def revise(self, keep: int, tokens: Sequence[int]) -> None:
        """Replace what follows the first ``keep`` tokens; only that is computed again.

        Raises:
            InvalidRequest: the turn is sealed or closed, or has fewer than ``keep`` tokens, or
                would have none.
        """
        if self._ended:
            raise InvalidRequest(
                f"The open turn {self.turn_id} is sealed or closed.", remedy="Open another one."
            )
        if not 0 <= keep <= len(self._tokens) or keep + len(tokens) == 0:
            raise InvalidRequest(
                f"{keep} of {len(self._tokens)} tokens are to be kept, and {len(tokens)} added.",
                remedy="Keep at most what is there, and leave at least one token.",
            )
        self._tokens[keep:] = tokens
        self._posts.revise(self.turn_id, keep, list(tokens))

    async def seal(self, request: EngineRequest) -> TurnStream:
        """Hand in the turn whose prompt this was, and return its stream, as ``Engine.submit`` does.

        ``request.prompt`` counts: where it differs from the tokens here, it is computed from there
        on. It needs a turn id of its own.

        Raises:
            InvalidRequest: the turn is sealed or closed; and what ``Engine.submit`` raises.
        """
        if self._ended:
            raise InvalidRequest(
                f"The open turn {self.turn_id} is sealed or closed.", remedy="Submit the request."
            )
        self._ended = True
        try:
            return await self._submit(request, self.turn_id)
        except BaseException:
            self._posts.close_opened(self.turn_id)
            raise

    def close(self) -> None:
        """Give it up, if it is not sealed: what was computed may still be found. Idempotent."""
        if not self._ended:
            self._ended = True
            self._posts.close_opened(self.turn_id)

    def __enter__(self) -> OpenTurn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"<OpenTurn {self.turn_id} [{state}, {len(self._tokens)} tokens]>"
