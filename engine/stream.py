"""The way from the engine's thread to whoever awaits a turn, under asyncio or trio.

The engine thread only ever posts; it never waits for a reader. A reader only ever waits for an
event of its own loop. Everything in :class:`TurnStream` runs in that loop, so it needs no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import anyio

from agentrt.engine.backend import TokenLogprob
from agentrt.scheduling.plan import FinishReason, TurnStats

__all__ = ["Bridge", "Chunk", "TurnStream"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added to a turn. The last chunk, and only it, has ``finish``.

    ``text`` may lag behind ``tokens``: parts of a character, and what may be the beginning of a
    stop text, are held back until they are certain.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Bridge:
    """Runs callables in one event loop from any thread. Equal for the same loop."""

    loop: object
    _post: Callable[..., object]

    @classmethod
    def here(cls) -> Bridge:
        """Return the bridge to the running loop.

        Raises:
            RuntimeError: neither asyncio nor trio runs in this thread.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            token = trio.lowlevel.current_trio_token()
            return cls(token, token.run_sync_soon)
        return cls(loop, loop.call_soon_threadsafe)

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Have ``function(*args)`` run in the loop soon; False if the loop has ended."""
        try:
            self._post(function, *args)
        except RuntimeError:  # asyncio's closed loop, and trio's RunFinishedError
            return False
        return True

    def __hash__(self) -> int:
        return id(self.loop)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bridge) and other.loop is self.loop


class TurnStream:
    """One turn's output, to be iterated over by one task; ends after the chunk with ``finish``.

    ``stats`` is set before the last chunk is handed out, and so is ``error`` where the turn failed.
    Closing the stream, or cancelling the task that awaits a chunk, cancels the turn; it never waits
    for the engine. Leaving the loop early without closing lets the turn run on to its end: use
    ``async with``.
    """

    def __init__(self, turn_id: str, bridge: Bridge, cancel: Callable[[str], None]) -> None:
        self.turn_id = turn_id
        self.stats: TurnStats | None = None
        self.error: str | None = None
        self._bridge = bridge
        self._cancel = cancel
        self._chunks: deque[Chunk] = deque()
        self._wake = anyio.Event()
        self._accepted = anyio.Event()
        self._refusal: Exception | None = None
        self._ended = False
        self._closed = False

    @property
    def bridge(self) -> Bridge:
        """The way into the reader's loop."""
        return self._bridge

    def __aiter__(self) -> TurnStream:
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._closed or self._ended:
                raise StopAsyncIteration
            self._wake = anyio.Event()
            try:
                await self._wake.wait()
            except anyio.get_cancelled_exc_class():
                self._abandon()
                raise
        return self._chunks.popleft()

    async def __aenter__(self) -> TurnStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the turn if it has not ended, and end the iteration. Does not wait; idempotent."""
        self._abandon()

    async def accepted(self) -> None:
        """Wait until the engine has taken the turn.

        Raises:
            Exception: whatever the engine or the scheduler refused it with.
        """
        try:
            await self._accepted.wait()
        except anyio.get_cancelled_exc_class():
            self._abandon()
            raise
        if self._refusal is not None:
            self._ended = True
            raise self._refusal

    def answer(self, refusal: Exception | None) -> None:
        """Say whether the turn was taken. Called in the reader's loop."""
        self._refusal = refusal
        self._accepted.set()

    def feed(self, chunk: Chunk, stats: TurnStats | None, error: str | None) -> None:
        """Add a chunk. Called in the reader's loop."""
        if chunk.finish is not None:
            self.stats, self.error, self._ended = stats, error, True
        if not self._closed:
            self._chunks.append(chunk)
        self._wake.set()

    def _abandon(self) -> None:
        if not self._closed and not self._ended:
            self._cancel(self.turn_id)
        self._closed = True
        self._chunks.clear()
        self._wake.set()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "closed" if self._closed else "open"
        return f"<TurnStream {self.turn_id} [{state}, {len(self._chunks)} chunks waiting]>"
