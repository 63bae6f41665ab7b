"""Which tool an answer calls, for clients that do not say it. Pure.

Three ways of writing a call: one fenced shell block, ``<tool_call>`` with JSON (Hermes), and bare
JSON with a name and parameters (Llama). As Continuum's public code does, the shell block is known
by the first word of its command, and several calls as ``multi_tool``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from agentrt.hints.values import label

__all__ = ["MULTI", "called_tool"]

MULTI = "multi_tool"
LONGEST = 65_536
"""Characters looked at, from the end: calls stand there."""
SHELL = re.compile(r"^```(?:bash|sh|shell|mswea_bash_command)[ \t]*\n(.*?)^```", re.M | re.S)
HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.S)
ARGUMENTS = ("parameters", "arguments")


def called_tool(text: str, command_name: Callable[[str], str]) -> str | None:
    """Return the tool that ``text`` calls, ``multi_tool`` for several, None for none.

    ``command_name`` names a shell command, as the sandboxes that run it do.
    """
    end = text[-LONGEST:]
    calls = list(_calls(end, command_name))
    if len(calls) > 1:
        return MULTI
    return calls[0] if calls else None


def _calls(text: str, command_name: Callable[[str], str]) -> Iterator[str]:
    named = [_json_name(match[1]) for match in HERMES.finditer(text)] or [_json_name(text.strip())]
    found = [name for name in named if name is not None]
    yield from found
    if not found:
        commands = [match[1].strip() for match in SHELL.finditer(text)]
        named = [_usable(command_name(command)) for command in commands if command]
        yield from (name for name in named if name is not None)


def _usable(name: Any) -> str | None:
    usable = label(name)
    return None if usable is None else str(usable.value)


def _json_name(text: str) -> str | None:
    if not text.startswith("{"):
        return None
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not any(key in call for key in ARGUMENTS):
        return None
    return _usable(call.get("name"))
