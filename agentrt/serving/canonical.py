"""Messages in one form, whatever a client made of them. Pure.

Clients send history back changed: ``content`` null, empty or missing; text as a list of parts;
arguments re-serialised; keys added and reordered. ``normalise`` undoes all of it, so that the
prompt is rendered from one form and two requests can be compared message by message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from agentrt.serving.errors import FieldError

__all__ = ["Digest", "Message", "answered", "chain", "for_template", "normalise"]

Message: TypeAlias = dict[str, Any]
Digest: TypeAlias = bytes

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normalise(messages: Any) -> list[Message]:
    """Return ``messages`` of a chat request in canonical form.

    Each has ``role`` and ``content`` (a string); an assistant's may have ``tool_calls`` with parsed
    arguments, a tool's has ``tool_call_id``. Other keys are dropped.

    Raises:
        FieldError: not a non-empty list of messages with known roles and text content.
    """
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "is not a non-empty list", remedy="Send at least one message.")
    return [_message(entry, f"messages[{number}]") for number, entry in enumerate(messages)]


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Return what a chat template understands: ``developer`` becomes ``system``, and the system
    messages that open the list become one, since most templates know only a single one there.
    """
    renamed = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]
    opening = 0
    while opening < len(renamed) and renamed[opening]["role"] == "system":
        opening += 1
    if opening < 2:
        return renamed
    joined = "\n\n".join(str(message["content"]) for message in renamed[:opening])
    return [{"role": "system", "content": joined}, *renamed[opening:]]


def chain(scope: Any, messages: Sequence[Message]) -> list[Digest]:
    """Return one digest for each prefix of ``messages``, the shortest first.

    Two chains agree on entry ``i`` if and only if scope (JSON-like: tenant, model, tools) and the
    first ``i + 1`` canonical messages agree, but for spaces around what an assistant said, which
    clients trim.
    """
    digests: list[Digest] = []
    newest = _digest(b"", scope)
    for message in messages:
        newest = answered(newest, message)
        digests.append(newest)
    return digests


def answered(asked: Digest, answer: Message) -> Digest:
    """Return the digest of the list ``asked`` with one more message at its end."""
    trimmed = answer["role"] == "assistant"
    return _digest(asked, {**answer, "content": answer["content"].strip()} if trimmed else answer)


def _digest(before: Digest, value: Any) -> Digest:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), key=before, digest_size=16).digest()


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, Mapping):
        raise FieldError(where, "is not an object", remedy="Send {'role': …, 'content': …}.")
    role = entry.get("role")
    if role not in ROLES:
        raise FieldError(f"{where}.role", f"is {role!r}", remedy=f"Use one of {', '.join(ROLES)}.")
    message: Message = {"role": role, "content": _text(entry.get("content"), f"{where}.content")}
    if role == "assistant" and entry.get("tool_calls"):
        message["tool_calls"] = _calls(entry["tool_calls"], f"{where}.tool_calls")
    if role == "tool":
        message["tool_call_id"] = str(entry.get("tool_call_id") or "")
    return message


def _text(content: Any, where: str) -> str:
    """Return content given as a string, null, or a list of text parts, as one string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(where, "is no text", remedy="Send a string, null or a list of text parts.")
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
    if not isinstance(text, str):
        raise FieldError(
            where, f"has type {kind!r}", remedy="This model reads text only: send text parts."
        )
    return text


def _calls(calls: Any, where: str) -> list[Message]:
    if not isinstance(calls, list):
        raise FieldError(where, "is not a list", remedy="Send a list of tool calls.")
    return [_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, where: str) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise FieldError(
            where, "names no function", remedy="Send {'id', 'type', 'function': {'name', …}}."
        )
    parsed = {"name": name, "arguments": _arguments(function.get("arguments"))}
    return {"id": str(call.get("id") or ""), "type": "function", "function": parsed}


def _arguments(arguments: Any) -> Any:
    """Return arguments parsed and with sorted keys; what is no JSON stays the text it is."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return arguments
    return json.loads(json.dumps(arguments, sort_keys=True))
