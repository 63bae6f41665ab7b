"""One turn over HTTP: run it while its client is there, answer at once or as a stream.

Everything from the first look at the scheduler to the last byte happens inside one response object,
under one cancel scope. The scope ends when the client goes away, waiting in the queue or not, and
when the server cuts what still runs; the turn is then cancelled and its pages are free one step on.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agentrt.engine.stream import Chunk
from agentrt.errors import AgentRTError, Cancelled, EngineFault
from agentrt.identity import Identity
from agentrt.scheduling.plan import FinishReason, TurnStats
from agentrt.serving.canonical import Digest
from agentrt.serving.contexts import Ask
from agentrt.serving.errors import Draining, refusal
from agentrt.serving.gate import Gate
from agentrt.serving.metrics import Metrics, TurnMeter
from agentrt.serving.openai import Writer
from agentrt.serving.registry import ProgramRegistry, Ticket
from agentrt.serving.settings import ServeSettings

if TYPE_CHECKING:
    from agentrt.program import ChatStream

__all__ = ["Desk", "Job", "TurnResponse", "encode_json"]

_LAST_WORD = 1.0
"""Seconds to tell a client why its turn was cut, before its connection is left to the server."""
_IGNORED = frozenset({"malformed", "unsupported", "unknown"})
_MAX_IGNORED = 16


@dataclass(frozen=True, slots=True)
class Desk:
    """What every turn of a server needs."""

    settings: ServeSettings
    registry: ProgramRegistry
    metrics: Metrics
    gate: Gate


@dataclass(frozen=True, slots=True)
class Job:
    """One turn to be run.

    ``start`` hands it to its program. ``finish`` is called with the output tokens once the answer
    is delivered; it returns the digest of the conversation with that answer added, by which a next
    turn will be known. ``writer`` puts the answer in words.
    """

    ask: Ask
    who: Identity
    stream: bool
    start: Callable[[Ticket], Awaitable[ChatStream]]
    finish: Callable[[Ticket, Sequence[int]], Digest]
    writer: Writer


def encode_json(payload: Mapping[str, Any]) -> bytes:
    """Return compact JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class TurnResponse(Response):
    """Runs a :class:`Job` when it is called, and is its answer."""

    def __init__(self, desk: Desk, job: Job) -> None:
        super().__init__()
        self._desk = desk
        self._job = job
        self._meter = desk.metrics.turn()
        self._tokens: list[int] = []
        self._settled = False
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the turn; returns when the answer is complete or its client is gone."""
        line = _Line(send)
        async with anyio.create_task_group() as tasks:
            stop = tasks.cancel_scope.cancel
            with self._desk.gate.guard(stop):
                tasks.start_soon(self._watch_client, receive, stop)
                tasks.start_soon(line.keep_alive, self._desk.settings.keepalive)
                await self._run(line)
                stop()
        if self._gone and not line.complete:
            self._desk.metrics.disconnected()
        elif not line.complete:  # only the gate stops a turn whose client is still there
            error = Draining("The server is shutting down.", remedy="Try again, or ask another.")
            with anyio.move_on_after(_LAST_WORD):
                await self._refuse(line, error)

    async def _watch_client(self, receive: Receive, stop: Callable[[], None]) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                stop()
                return

    async def _run(self, line: _Line) -> None:
        try:
            self._desk.gate.check()
            await self._run_ticket(line)
        except AgentRTError as error:
            await self._refuse(line, error)

    async def _run_ticket(self, line: _Line) -> None:
        ticket = await self._desk.registry.open(self._job.ask, self._job.who)
        self._desk.metrics.placed(ticket.placement.how)
        try:
            stream = await self._job.start(ticket)
            try:
                deliver = self._deliver_stream if self._job.stream else self._deliver_whole
                await deliver(ticket, stream, line)
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        finally:
            await self._settle(ticket, None)

    async def _settle(self, ticket: Ticket, state: Digest | None) -> None:
        """Close the ticket, once. With a state, do it before the last byte is sent: a client may
        ask its next question as soon as it has that byte, and must find its context free.
        """
        if not self._settled:
            self._settled = True
            with anyio.CancelScope(shield=True):
                await self._desk.registry.close(ticket, state)

    async def _deliver_whole(self, ticket: Ticket, stream: ChatStream, line: _Line) -> None:
        finish: FinishReason | None = None
        async for chunk in stream:
            self._take(chunk)
            self._job.writer.chunk(chunk)
            finish = chunk.finish
        stats = _ended(stream, finish, self._meter)
        await self._settle(ticket, self._job.finish(ticket, self._tokens))
        await line.answer(200, self._placing(ticket), self._job.writer.whole(stats.reason, stats))

    async def _deliver_stream(self, ticket: Ticket, stream: ChatStream, line: _Line) -> None:
        await line.open_events(self._placing(ticket))
        writer = self._job.writer
        finish: FinishReason | None = None
        opened = False
        async for chunk in stream:
            self._take(chunk)
            events = [] if opened else writer.opening()
            await line.events([*events, *writer.chunk(chunk)])
            opened, finish = True, chunk.finish
        stats = _ended(stream, finish, self._meter)
        await self._settle(ticket, self._job.finish(ticket, self._tokens))
        await line.events(writer.closing(stats.reason, stats))
        await line.close_events()

    def _placing(self, ticket: Ticket) -> dict[str, str]:
        """Return the headers that tell a client where its turn belongs, and what was ignored."""
        placement = ticket.placement
        headers = {
            "x-agentrt-program": quote(placement.program[1], safe="/:@"),
            "x-agentrt-context": placement.context,
        }
        ignored = [note for note in self._job.who.notes if note.outcome in _IGNORED]
        if ignored:
            told = (f"{note.label} {note.outcome}" for note in ignored[:_MAX_IGNORED])
            headers["x-agentrt-hints-ignored"] = ", ".join(told)
        return headers

    def _take(self, chunk: Chunk) -> None:
        self._meter.tokens(len(chunk.tokens))
        self._tokens.extend(chunk.tokens)

    async def _refuse(self, line: _Line, error: AgentRTError) -> None:
        told = refusal(error, retry_after=self._desk.settings.retry_after)
        self._desk.metrics.refused(told.body["error"]["code"])
        if line.started:
            await line.events([told.body])
            await line.close_events()
        else:
            await line.answer(told.status, told.headers, told.body)


def _ended(stream: ChatStream, finish: FinishReason | None, meter: TurnMeter) -> TurnStats:
    """Return the account of a turn that came to its own end.

    Raises:
        EngineFault: the engine failed it.
        Cancelled: its program was ended, or the engine is shutting down.
    """
    stats = stream.stats
    if stats is not None:
        meter.finished(stats)
    if finish == "failed":
        raise EngineFault(
            f"The turn failed: {stream.error or 'the engine gave no reason'}.",
            remedy="Send the request again; if it fails again, see the log of the engine.",
        )
    if stats is None or finish is None or finish == "cancelled":
        raise Cancelled(
            "The turn was cancelled: its program was ended, or the server is shutting down.",
            remedy="Send the request again if it is still wanted.",
        )
    return stats


class _Line:
    """The way to one client. ``started``: a status was sent; ``complete``: so was the last byte."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = anyio.Lock()
        self._streaming = False
        self._silent = True
        self.started = False
        self.complete = False

    async def answer(
        self, status: int, headers: Mapping[str, str], payload: Mapping[str, Any]
    ) -> None:
        """Send a whole answer."""
        body = encode_json(payload)
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self._start(status, {**headers, **length})
        await self._write(body, more=False)
        self.complete = True

    async def open_events(self, headers: Mapping[str, str]) -> None:
        """Send the head of an event stream, at once."""
        kind = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._start(200, {**headers, **kind})
        self._streaming = True

    async def events(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Send JSON objects, each as one event."""
        parts = [b"data: " + encode_json(payload) + b"\n\n" for payload in payloads]
        if parts:
            await self._write(b"".join(parts))

    async def close_events(self) -> None:
        """Send the mark that ends a stream."""
        self._streaming = False
        await self._write(b"data: [DONE]\n\n", more=False)
        self.complete = True

    async def keep_alive(self, interval: float) -> None:
        """Send a comment whenever an open stream was silent for ``interval`` seconds or longer."""
        while not self.complete:
            self._silent = True
            await anyio.sleep(interval)
            async with self._lock:
                if self._streaming and self._silent:  # not after the last byte
                    await self._send_body(b": keep-alive\n\n", more=True)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        async with self._lock:
            self._silent = False
            await self._send_body(data, more=more)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
