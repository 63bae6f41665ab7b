"""Answers in the shapes of the OpenAI API: pure functions from chunks to JSON objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from agentrt.engine.backend import TokenLogprob
from agentrt.engine.stream import Chunk
from agentrt.scheduling.plan import FinishReason, TurnStats
from agentrt.serving.calls import CallReader
from agentrt.serving.canonical import Message
from agentrt.serving.requests import Delivery

__all__ = ["ChatWriter", "CompletionWriter", "ReplyHead", "Writer", "models", "usage"]

Json: TypeAlias = dict[str, Any]
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know."""


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What all chunks of an answer have in common; ``created`` is Unix time in seconds."""

    id: str
    created: int
    model: str


class Writer(Protocol):
    """Turns one turn's chunks into the JSON objects of an answer."""

    def opening(self) -> list[Json]:
        """Return what a stream begins with."""
        ...

    def chunk(self, chunk: Chunk) -> list[Json]:
        """Return what a stream sends for one chunk; keep what the whole answer needs."""
        ...

    def closing(self, finish: FinishReason, stats: TurnStats) -> list[Json]:
        """Return what a stream ends with, before ``[DONE]``."""
        ...

    def whole(self, finish: FinishReason, stats: TurnStats) -> Json:
        """Return the answer that is sent at once."""
        ...

    @property
    def text(self) -> str:
        """The text so far."""
        ...


def usage(prompt: int, cached: int, output: int) -> Json:
    """Return the usage object; ``cached`` is a part of ``prompt``. All are tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def usage_of(stats: TurnStats) -> Json:
    """Return the usage object of a turn that has ended."""
    return usage(stats.prompt_tokens, stats.cached_tokens, stats.output_tokens)


def models(names: Sequence[str], created: int) -> Json:
    """Return the answer of ``/v1/models``."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Json:
    """Return one entry of ``/v1/models``."""
    return {"id": name, "object": "model", "created": created, "owned_by": "agentrt"}


@dataclass(slots=True)
class _Written:
    """What both writers keep of a turn: the text, the log probabilities, the output tokens."""

    head: ReplyHead
    delivery: Delivery
    logprobs: bool
    decode: Callable[[Sequence[int]], str]
    prompt_tokens: int = 0
    tokens: int = 0
    length: int = 0
    _texts: list[str] = field(default_factory=list)
    _kept: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def _keep(self, chunk: Chunk) -> bool:
        """Note a chunk; whether it has anything to show in a stream."""
        self._texts.append(chunk.text)
        self.length += len(chunk.text)
        self.tokens += len(chunk.tokens)
        if self.logprobs and not self.delivery.stream:
            self._kept.extend(chunk.logprobs)
        return bool(chunk.text or (self.logprobs and chunk.logprobs))

    def _event(self, kind: str, choices: list[Json]) -> Json:
        event = {**self._named(kind), "choices": choices}
        if self.delivery.continuous_usage:
            event["usage"] = usage(self.prompt_tokens, 0, self.tokens)
        return event

    def _usage_event(self, kind: str, stats: TurnStats) -> list[Json]:
        if not self.delivery.include_usage:
            return []
        return [{**self._named(kind), "choices": [], "usage": usage_of(stats)}]

    def _named(self, kind: str) -> Json:
        head = self.head
        return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


@dataclass(slots=True)
class ChatWriter(_Written):
    """Writes the answer to a chat request. With ``calls`` its text is read as calls of tools."""

    calls: CallReader | None = None

    @property
    def message(self) -> Message:
        """The answer so far, as the client will send it back."""
        return {"role": "assistant", **self._said()}

    def opening(self) -> list[Json]:
        """Return the chunk that says who speaks."""
        return [self._chat_event({"role": "assistant", "content": None if self.calls else ""})]

    def chunk(self, chunk: Chunk) -> list[Json]:
        """Return a content chunk, or nothing while text is held back or a call is not complete."""
        shown = self._keep(chunk)
        if self.calls is not None:
            return self._calls_chunk(self.calls, chunk)
        if not shown:
            return []
        return [self._chat_event({"content": chunk.text}, logprobs=chunk.logprobs)]

    def _calls_chunk(self, reader: CallReader, chunk: Chunk) -> list[Json]:
        known = len(reader.calls)
        new = [
            {"index": place, **call.shown(self._call_id(place))}
            for place, call in enumerate(reader.push(chunk.text), known)
        ]
        logprobs = chunk.logprobs if self.logprobs else ()
        if not new and not logprobs:
            return []
        return [self._chat_event({"tool_calls": new} if new else {}, logprobs=logprobs)]

    def closing(self, finish: FinishReason, stats: TurnStats) -> list[Json]:
        """Return the chunk with the finish reason, and the usage chunk if it was asked for."""
        cut = self.calls.rest if self.calls is not None else ""
        rest = [self._chat_event({"content": cut})] if cut else []
        end = self._chat_event({}, self._reason(finish))
        return [*rest, end, *self._usage_event("chat.completion.chunk", stats)]

    def whole(self, finish: FinishReason, stats: TurnStats) -> Json:
        """Return a ``chat.completion``."""
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", **self._said(), "refusal": None},
            "logprobs": self._logprobs(self._kept),
            "finish_reason": self._reason(finish),
        }
        return {**self._named("chat.completion"), "choices": [choice], "usage": usage_of(stats)}

    def _said(self) -> Json:
        if self.calls is None:
            return {"content": self.text}
        shown = [call.shown(self._call_id(i)) for i, call in enumerate(self.calls.calls)]
        said: Json = {"content": self.calls.rest or None}
        return {**said, "tool_calls": shown} if shown else said

    def _call_id(self, place: int) -> str:
        """Return a call's id: clients match results by it, so no two of them may be the same."""
        return f"call-{self.head.id}-{place}"

    def _reason(self, finish: FinishReason) -> str:
        called = self.calls is not None and self.calls.calls
        return "tool_calls" if called and finish == "stop" else finish

    def _chat_event(
        self,
        delta: Json,
        finish: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> Json:
        choice: Json = {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": finish,
        }
        return self._event("chat.completion.chunk", [choice])

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> Json | None:
        if not self.logprobs:
            return None
        content = [
            {
                **self._scored(entry.token, entry.logprob),
                "top_logprobs": [self._scored(token, value) for token, value in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token: int, logprob: float) -> Json:
        text = self.decode([token])
        # A token that is a part of a character has no text of its own, so no bytes can be told.
        known = "\N{REPLACEMENT CHARACTER}" not in text
        return {
            "token": text,
            "logprob": _finite(logprob),
            "bytes": list(text.encode()) if known else None,
        }


class CompletionWriter(_Written):
    """Writes the answer to a completion request."""

    def opening(self) -> list[Json]:
        """Return nothing: completions begin with text."""
        return []

    def chunk(self, chunk: Chunk) -> list[Json]:
        """Return a text chunk, or nothing while text is held back."""
        offset = self.length
        if not self._keep(chunk):
            return []
        return [self._choice_event(chunk.text, None, self._logprobs(chunk.logprobs, offset))]

    def closing(self, finish: FinishReason, stats: TurnStats) -> list[Json]:
        """Return the chunk with the finish reason, and the usage chunk if it was asked for."""
        return [self._choice_event("", finish, None), *self._usage_event("text_completion", stats)]

    def whole(self, finish: FinishReason, stats: TurnStats) -> Json:
        """Return a ``text_completion``."""
        event = self._choice_event(self.text, finish, self._logprobs(self._kept, 0))
        return {**event, "usage": usage_of(stats)}

    def _choice_event(self, text: str, finish: FinishReason | None, logprobs: Json | None) -> Json:
        choice: Json = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._event("text_completion", [choice])

    def _logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> Json | None:
        if not self.logprobs:
            return None
        tokens = [self.decode([entry.token]) for entry in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {self.decode([token]): _finite(value) for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": list(_offsets(tokens, offset)),
        }


def _offsets(tokens: Sequence[str], start: int) -> Iterator[int]:
    for token in tokens:
        yield start
        start += len(token)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
