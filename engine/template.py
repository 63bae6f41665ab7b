"""Chat templates: jinja2 in a sandbox, with the few names that published templates expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentrt.errors import InvalidRequest, ModelError

__all__ = ["ChatTemplate", "Message", "plain_message"]

Message = Mapping[str, Any]
"""One chat message as clients send it: ``role``, ``content``, maybe ``tool_calls``."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: the jinja2 text.
        origin: the file it is from, named in errors.
        variables: further names that it may use, such as ``bos_token``.
        now: the wall clock behind ``strftime_now``.

    Raises:
        ModelError: the template does not compile.
    """

    def __init__(
        self,
        source: str,
        *,
        origin: str,
        variables: Mapping[str, Any] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._origin = origin
        self._variables = dict(variables or {})
        try:
            self._template = _environment(now).from_string(source)
        except TemplateError as error:
            raise ModelError(
                f"{origin}: the chat template does not compile: {error}.",
                remedy="Restore the template that belongs to the model.",
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: oldest first, at least one.
            tools: descriptions of the tools that the model may call.
            add_generation_prompt: end with the opening of an assistant turn.

        Raises:
            InvalidRequest: there are no messages, one is malformed, or the template refuses them.
        """
        if not messages:
            raise InvalidRequest("There are no messages.", remedy="Send at least one message.")
        plain = [plain_message(message) for message in messages]
        try:
            return self._template.render(
                **self._variables,
                messages=plain,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
            )
        # A template computes with what the client sent: its type and key errors are the client's.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"The model's chat template refuses the messages: {error}",
                remedy="Send roles and contents that this model's template knows.",
            ) from error


def plain_message(message: Message) -> dict[str, Any]:
    """Return a message in the form that templates expect: text content, parsed arguments.

    Raises:
        InvalidRequest: no role, content that is not text, or malformed tool calls.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest("A message has no role.", remedy="Give each message a role.")
    plain = dict(message)
    if "content" in plain:
        plain["content"] = _text(plain["content"])
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_call(call) for call in plain["tool_calls"]]
    return plain


def _text(content: object) -> str | None:
    """Return the content as one text; its parts, if it has several, follow each other."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise InvalidRequest(
                "A message's content is neither a text nor a list of text parts.",
                remedy='Send {"type": "text", "text": ...} parts only; this model reads text.',
            )
        texts.append(text)
    return "".join(texts)


def _call(call: object) -> dict[str, Any]:
    """Return a tool call whose arguments are an object where they can be read as one."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequest(
            "A tool call has no function.",
            remedy='Send {"type": "function", "function": {"name": ..., "arguments": ...}}.',
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None  # models write broken JSON at times; templates can show the text as it is
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


class _Generation(Extension):
    """``{% generation %}``, with which training code marks assistant text: shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's way to declare it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = partial(_format_time, now)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is: jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _format_time(now: Callable[[], datetime], form: str) -> str:
    return now().strftime(form)
