"""Request bodies, read and checked field by field. Pure.

What is known and wrong is refused with the field's name; what is known and would change the output
but cannot be done yet is refused as well; what is unknown is accepted and listed for counting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentrt.engine.grammar import Grammar
from agentrt.engine.params import SamplingParams
from agentrt.errors import InvalidRequest
from agentrt.serving.canonical import Message, normalise
from agentrt.serving.errors import FieldError
from agentrt.serving.structured import FIELDS, Structure, called_grammar, structure

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "Delivery",
    "parse_body",
    "parse_chat",
    "parse_completion",
]

Body: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the answer is to be sent: at once or streamed, and which usage chunks a stream has."""

    stream: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request with canonical messages. ``tools`` is None or a non-empty list.

    ``limited``: it states its ``max_tokens``; else the sampling has 1, and the server chooses.
    ``calls``: the answer has to be calls of its tools.
    """

    model: str | None
    messages: list[Message]
    tools: list[Message] | None
    calls: bool
    sampling: SamplingParams
    limited: bool
    delivery: Delivery
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completion request; ``prompt`` is text or token ids. ``limited`` as for a chat."""

    model: str | None
    prompt: str | list[int]
    sampling: SamplingParams
    limited: bool
    delivery: Delivery
    unknown: tuple[str, ...]


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that a request body is.

    Raises:
        InvalidRequest: it is something else.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The request body is no JSON: {error}.", remedy="Send one JSON object."
        ) from error
    if not isinstance(body, dict):
        raise InvalidRequest("The request body is no JSON object.", remedy="Send one JSON object.")
    return body


def parse_chat(body: Body) -> ChatRequest:
    """Read the body of ``/v1/chat/completions``.

    Raises:
        InvalidRequest: a known field is wrong, or asks for what is not supported.
    """
    _refuse_unsupported(body, _UNSUPPORTED)
    tools = _tools(body)
    several = body.get("parallel_tool_calls") is not False
    called = called_grammar(body.get("tool_choice"), tools or [], several=several)
    return ChatRequest(
        model=_text(body, "model"),
        messages=normalise(body.get("messages")),
        tools=tools,
        calls=called is not None,
        sampling=_sampling(body, _chat_logprobs(body), called),
        limited=_limit(body) is not None,
        delivery=_delivery(body),
        unknown=tuple(sorted(body.keys() - _KNOWN - _CHAT)),
    )


def parse_completion(body: Body) -> CompletionRequest:
    """Read the body of ``/v1/completions``.

    Raises:
        InvalidRequest: a known field is wrong, or asks for what is not supported.
    """
    _refuse_unsupported(body, _UNSUPPORTED + _UNSUPPORTED_COMPLETION)
    return CompletionRequest(
        model=_text(body, "model"),
        prompt=_prompt(body.get("prompt")),
        sampling=_sampling(body, body.get("logprobs")),
        limited=_limit(body) is not None,
        delivery=_delivery(body),
        unknown=tuple(sorted(body.keys() - _KNOWN - _COMPLETION)),
    )


def _sampling(body: Body, logprobs: Any, called: Grammar | None = None) -> SamplingParams:
    values = {name: body[name] for name in _PLAIN if body.get(name) is not None}
    limit = _limit(body)
    values["max_tokens"] = 1 if limit is None else limit
    if values.get("top_k") == -1:  # how some clients write "all"
        values["top_k"] = 0
    # An answer that has to be a call is no answer in the response's format.
    form = structure(body) if called is None else Structure(called)
    sampling = SamplingParams(
        **values,
        stop=_stop(body.get("stop")),
        stop_token_ids=tuple(_list(body, "stop_token_ids")),
        logprobs=logprobs,
        choices=form.choices,
        grammar=form.grammar,
    )
    try:
        sampling.validate()
    except InvalidRequest as error:
        raise _with_param(error) from error
    return sampling


def _limit(body: Body) -> Any:
    return next((body[name] for name in _LIMITS if body.get(name) is not None), None)


def _with_param(error: InvalidRequest) -> FieldError:
    """Return the sampler's complaint, which begins with a field's name, with that name apart."""
    name, _, problem = error.message.rstrip(".").partition(" ")
    param = _PARAMS.get(name, name)
    return FieldError(param, problem, remedy=error.remedy.replace(name, param))


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if isinstance(stop, list) and all(isinstance(text, str) for text in stop):
        return tuple(stop)
    raise FieldError("stop", "is no text", remedy="Send a string or a list of strings.")


def _chat_logprobs(body: Body) -> int | None:
    top = body.get("top_logprobs")
    if _flag(body, "logprobs"):
        return 0 if top is None else top
    if top:
        raise FieldError("top_logprobs", "is set without logprobs", remedy="Set logprobs to true.")
    return None


def _delivery(body: Body) -> Delivery:
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise FieldError(
            "stream_options", "is no object", remedy="Send an object, or leave it out."
        )
    return Delivery(
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        continuous_usage=_flag(options, "continuous_usage_stats"),
    )


def _tools(body: Body) -> list[Message] | None:
    """Return the function tools; tools of other kinds are skipped."""
    tools = [_tool(tool, number) for number, tool in enumerate(_list(body, "tools"))]
    return [tool for tool in tools if tool is not None] or None


def _tool(tool: Any, number: int) -> Message | None:
    where = f"tools[{number}]"
    if not isinstance(tool, Mapping):
        raise FieldError(where, "is no object", remedy="Send {'type': 'function', 'function': …}.")
    if tool.get("type", "function") != "function":
        return None
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise FieldError(where, "names no function", remedy="Send {'function': {'name': …}}.")
    return {"type": "function", "function": dict(function)}


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise FieldError(
        "prompt", "is no single prompt", remedy="Send one text or one list of token ids a request."
    )


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise FieldError(name, "is no text", remedy="Send a string.")


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise FieldError(name, f"is {value!r}", remedy="Send true or false.")


def _list(body: Body, name: str) -> list[Any]:
    value = body.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise FieldError(name, "is no list", remedy="Send a list, or leave it out.")


@dataclass(frozen=True, slots=True)
class _Unsupported:
    """A field that would change the output; ``harmless`` tells values that ask for nothing."""

    name: str
    harmless: Callable[[Any], bool]
    remedy: str


_UNSUPPORTED: tuple[_Unsupported, ...] = (
    _Unsupported("n", lambda value: value == 1, "Send n requests with n=1."),
    _Unsupported("best_of", lambda value: value == 1, "Send several requests and choose."),
    _Unsupported("logit_bias", lambda value: not value, "Leave it out."),
    _Unsupported("modalities", lambda value: value == ["text"], "Ask for text only."),
)
_UNSUPPORTED_COMPLETION: tuple[_Unsupported, ...] = (
    _Unsupported("echo", lambda value: not value, "Leave it out."),
    _Unsupported("suffix", lambda value: not value, "Leave it out."),
)


def _refuse_unsupported(body: Body, rows: tuple[_Unsupported, ...]) -> None:
    for row in _asked(body, rows):
        raise FieldError(row.name, "asks for what this server cannot do", remedy=row.remedy)


def _asked(body: Body, rows: tuple[_Unsupported, ...]) -> Iterator[_Unsupported]:
    return (
        row for row in rows if body.get(row.name) is not None and not row.harmless(body[row.name])
    )


_PARAMS = {"choices": "guided_choice"}
_LIMITS = ("max_completion_tokens", "max_tokens")
# fmt: off
_PLAIN = frozenset({
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "ignore_eos",
})
# Accepted and without effect: what they ask for is served anyway, or nobody is owed it.
_IGNORED = frozenset({
    "parallel_tool_calls", "reasoning_effort", "reasoning", "include", "store", "client_metadata",
    "metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "nvext",
    "vllm_xargs", "extra_args", "kv_hints", "program_id", "job_id", "session_id", "agent_hint",
    "agent_hints", "cache_control", "service_tier", "agentrt", "priority", "kv_transfer_params",
    "retention_directives", "retention_scope",
})
_OWN = frozenset({"model", "stream", "stream_options", "stop", "stop_token_ids", "logprobs"})
_KNOWN = _OWN.union(FIELDS, _LIMITS, _PLAIN, _IGNORED, (row.name for row in _UNSUPPORTED))
_CHAT = frozenset({"messages", "tools", "tool_choice", "top_logprobs"})
_COMPLETION = frozenset({"prompt"}.union(row.name for row in _UNSUPPORTED_COMPLETION))
# fmt: on
