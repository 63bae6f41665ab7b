"""A model behind any OpenAI-compatible URL. Every way in which it can fail has a name and a bound.

A request is tried again when that may help (429, 5xx, no connection, too slow), at most
``HttpOptions.attempts`` times; an answer that does not belong to the closed set is asked for again,
at most ``HttpOptions.asks`` times.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from agentrt.errors import ConfigError
from agentrt.workflows.models import (
    Choice,
    FailureKind,
    Message,
    ModelFailure,
    Reply,
    merge_messages,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpModel", "HttpOptions", "ServedModel", "served_model"]

_PASSING: frozenset[FailureKind] = frozenset(
    {"timeout", "rate_limited", "server_error", "unreachable", "truncated"}
)
LARGEST_REPLY = 4 << 20
"""Bytes of a response that are read; what is longer is not an answer."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Bounds of one question. Times in seconds.

    ``attempts`` requests at most per answer, each ``timeout`` long at most; waits between them grow
    from ``initial_wait`` by two, or are what Retry-After says, and are ``longest_wait`` at most.
    ``asks`` answers at most are looked at. ``guided`` sends the closed set as ``guided_choice``,
    which agentrt's own server enforces while it decodes; others may refuse the field.
    """

    timeout: float = 60.0
    attempts: int = 4
    initial_wait: float = 0.5
    longest_wait: float = 30.0
    asks: int = 3
    guided: bool = False
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The first model that a server lists; ``guided`` if the server enforces closed sets itself."""

    name: str
    guided: bool


async def served_model(
    base_url: str, *, api_key: str | None = None, timeout: float = 10.0
) -> ServedModel | None:
    """Ask a server which model it serves: ``GET {base_url}/models``, for ``timeout`` seconds.

    None if it does not say; the first question will then tell why.
    """
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with _client(headers) as client:
            with anyio.fail_after(timeout):
                answer = await client.get(base_url.rstrip("/") + "/models")
        first = answer.json()["data"][0]
        return ServedModel(str(first["id"]), first.get("owned_by") == "agentrt")
    except (TimeoutError, httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        return None


class HttpModel:
    """Asks ``POST {base_url}/chat/completions``.

    Args:
        base_url: up to and with ``/v1``.
        model: the name that the server knows the model by.
        api_key: sent as a bearer token; None sends none.
        options: bounds.
        sleep: waits; injected by tests.

    Raises:
        ConfigError: the URL is not one of http or https, or httpx is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        options: HttpOptions | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{base_url!r} is not a URL of a model.", remedy="Give http://HOST:PORT/v1."
            )
        self.options = options or HttpOptions()
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._sleep = sleep
        self._client = _client({"Authorization": f"Bearer {api_key}"} if api_key else {})

    @property
    def name(self) -> str:
        """The server's name for the model; the URL may change while a run waits."""
        return f"http:{self._model}"

    async def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, context: str
    ) -> Choice:
        """Return one of ``choices``, read from a JSON answer and checked against the set.

        Raises:
            ModelFailure: by kind; ``nonsense`` when no answer within the bound was of the set.
        """
        asked = [*messages, {"role": "user", "content": _closed_question(choices)}]
        tokens = cached = 0
        said = ""
        for number in range(1, self.options.asks + 1):
            reply = await self._post(asked, 256, choices)
            tokens, cached = tokens + reply.tokens, cached + reply.cached_tokens
            answer = _answer_in(reply.text, choices)
            if answer is not None:
                evidence = f"{self._model}, answer {number} of at most {self.options.asks}"
                return Choice(answer, evidence, tokens=tokens, cached_tokens=cached)
            said = reply.text
            asked = [*asked, {"role": "assistant", "content": said or "(nothing)"}, _again(choices)]
        raise ModelFailure(
            "nonsense",
            f"{self._model} gave no answer of {list(choices)} in {self.options.asks} tries for "
            f"{context}; the last was {said[:80]!r}.",
            remedy="Use a model that follows instructions, or one whose server has guided_choice.",
        )

    async def write(
        self, messages: Sequence[Message], *, context: str, max_tokens: int = 512
    ) -> Reply:
        """Return the next assistant message.

        Raises:
            ModelFailure: by kind; ``nonsense`` when it is empty.
        """
        reply = await self._post(messages, max_tokens, None)
        if not reply.text.strip():
            raise ModelFailure(
                "nonsense",
                f"{self._model} wrote nothing for {context}.",
                remedy="Check the model, or raise max_tokens.",
            )
        return reply

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(
        self, messages: Sequence[Message], max_tokens: int, choices: Sequence[str] | None
    ) -> Reply:
        """Send one question until it is answered or the attempts are used up."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": merge_messages(messages),
            "max_tokens": max_tokens,
            "temperature": self.options.temperature,
        }
        if choices is not None and self.options.guided:
            body["guided_choice"] = list(choices)
        wait = self.options.initial_wait
        for number in range(1, self.options.attempts + 1):
            try:
                return await self._once(body)
            except _Failed as failed:
                if failed.failure.kind not in _PASSING or number == self.options.attempts:
                    raise failed.failure from failed.__cause__
                asked = wait if failed.retry_after is None else failed.retry_after
                await self._sleep(min(asked, self.options.longest_wait))
                wait *= 2
        raise ConfigError("attempts is less than 1.", remedy="Allow at least one attempt.")

    async def _once(self, body: Mapping[str, Any]) -> Reply:
        """Send one request. Raises ``_Failed``."""
        import httpx

        try:
            with anyio.fail_after(self.options.timeout):
                status, headers, data = await self._exchange(body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _failed(
                "timeout", f"{self._url} did not answer in {self.options.timeout:g} s."
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            kind: FailureKind = (
                "truncated" if isinstance(error, httpx.RemoteProtocolError) else "unreachable"
            )
            text = str(error) or type(error).__name__
            raise _failed(kind, f"{self._url} broke off or refused: {text}.") from error
        _check_status(self._url, status, headers, data)
        return _read_reply(self._url, data)

    async def _exchange(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        async with self._client.stream("POST", self._url, json=body) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                # What is too long is read on, as leaving early would leave the stream open; the
                # time limit bounds it.
                if len(data) <= LARGEST_REPLY:
                    data += part
            if len(data) > LARGEST_REPLY:
                raise _failed("nonsense", f"{self._url} sent more than {LARGEST_REPLY} bytes.")
            return response.status_code, response.headers, bytes(data)


class _Failed(Exception):
    def __init__(self, failure: ModelFailure, retry_after: float | None) -> None:
        super().__init__(failure)
        self.failure = failure
        self.retry_after = retry_after


_REMEDIES: dict[FailureKind, str] = {
    "timeout": "Give it more time, or a smaller prompt.",
    "rate_limited": "Lower the number of workers, or raise the server's limit.",
    "server_error": "See the server's log.",
    "unreachable": "Check the URL and that the server runs.",
    "refused": "Check the model's name, the key and the length of the prompt.",
    "truncated": "See the server's log; a proxy may cut answers.",
    "nonsense": "Check that the URL is one of an OpenAI-compatible server.",
    "unexpected": "Check the script.",
}


def _failed(kind: FailureKind, message: str, retry_after: float | None = None) -> _Failed:
    return _Failed(ModelFailure(kind, message, remedy=_REMEDIES[kind]), retry_after)


def _client(headers: Mapping[str, str]) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            "httpx is not installed.", remedy="Install it: pip install 'agentrt[serve]'."
        ) from error
    # One deadline around the whole exchange bounds it; the client's own would restart per read.
    return httpx.AsyncClient(headers=dict(headers), timeout=None)


def _check_status(url: str, status: int, headers: Mapping[str, str], data: bytes) -> None:
    """Raise ``_Failed`` unless the status is 200."""
    if status == 200:
        return
    said = data[:200].decode("utf-8", "replace")
    if status == 429:
        wait = _seconds(headers.get("retry-after"))
        raise _failed("rate_limited", f"{url} answered 429: {said}", wait)
    kind: FailureKind = "server_error" if status >= 500 else "refused"
    wait = _seconds(headers.get("retry-after"))
    raise _failed(kind, f"{url} answered {status}: {said}", wait)


def _seconds(text: str | None) -> float | None:
    """Return Retry-After in seconds; None for none, a date, or nonsense."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None  # a date: our own backoff then
    return value if value is not None and 0 <= value < float("inf") else None


def _read_reply(url: str, data: bytes) -> Reply:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _failed("truncated", f"{url} sent JSON that is cut or broken: {error}.") from error
    try:
        text = value["choices"][0]["message"]["content"]
    except (TypeError, LookupError) as error:
        raise _failed("nonsense", f"{url} sent JSON that is no chat completion.") from error
    if not isinstance(text, str):
        raise _failed("nonsense", f"{url} sent a message without a text.")
    usage = value.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    return Reply(text, _count(usage, "total_tokens"), _count(details, "cached_tokens"))


def _count(counts: object, key: str) -> int:
    value = counts.get(key) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _closed_question(choices: Sequence[str]) -> str:
    return f'Answer with JSON only: {{"answer": X}}, where X is one of {json.dumps(list(choices))}.'


def _again(choices: Sequence[str]) -> dict[str, str]:
    text = f"That is not one of the answers. {_closed_question(choices)}"
    return {"role": "user", "content": text}


def _answer_in(text: str, choices: Sequence[str]) -> str | None:
    """Return the one choice that the text is: bare, or as ``{"answer": ...}``, fenced or not."""
    plain = text.strip()
    if plain.startswith("```"):
        plain = plain.strip("`").removeprefix("json").strip()
    if plain in choices:
        return plain
    try:
        value = json.loads(plain)
    except ValueError:
        return None
    answer = value.get("answer") if isinstance(value, Mapping) else value
    return answer if isinstance(answer, str) and answer in choices else None
