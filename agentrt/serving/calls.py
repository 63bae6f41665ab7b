"""Tool calls in an answer that has to consist of them, as they become complete. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

__all__ = ["CallReader", "ToolCall"]

_OPENING = re.compile(r"\s*<tool_call>\s*")
_CLOSING = re.compile(r"\s*</tool_call>")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call; ``arguments`` is JSON, as clients expect it."""

    name: str
    arguments: str

    def shown(self, call_id: str) -> dict[str, Any]:
        """Return the call in OpenAI's shape."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": call_id, "type": "function", "function": function}


class CallReader:
    """Reads ``<tool_call>{"name": …, "arguments": …}</tool_call>`` in a text that grows."""

    def __init__(self) -> None:
        self._text = ""
        self.calls: list[ToolCall] = []

    @property
    def rest(self) -> str:
        """The text after the last complete call: empty in an answer that was not cut short."""
        return self._text

    def push(self, text: str) -> list[ToolCall]:
        """Take more text; return the calls that are complete with it."""
        self._text += text
        known = len(self.calls)
        while (found := self._next()) is not None:
            self.calls.append(found)
        return self.calls[known:]

    def _next(self) -> ToolCall | None:
        """Cut the first complete call off the text."""
        opening = _OPENING.match(self._text)
        if opening is None or "</tool_call>" not in self._text:
            return None
        try:
            call, end = json.JSONDecoder().raw_decode(self._text, opening.end())
        except ValueError:
            return None  # the closing mark is a part of an argument that is still to end
        closing = _CLOSING.match(self._text, end)
        if closing is None or not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        self._text = self._text[closing.end() :]
        return ToolCall(call["name"], json.dumps(call.get("arguments", {}), ensure_ascii=False))
