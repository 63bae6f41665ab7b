"""Grammars: what an output has to look like, as a request states it. No compiler here.

A grammar is text; :mod:`agentrt.engine.matcher` makes of it which tokens may come next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.errors import GrammarError, InternalError

__all__ = ["Grammar", "GrammarKind", "check_compiled", "grammar_error"]

GrammarKind: TypeAlias = Literal["json_schema", "regex", "lark"]
MAX_SOURCE = 1_000_000
"""Characters of a grammar."""

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LOOSE = {"whitespace_pattern": r"[ \t]{1,2}|\r?\n[ \t]{0,32}"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a whole output must match. Use the class methods to make one.

    ``source`` is a JSON schema, a regular expression, or a grammar in llguidance's dialect of Lark;
    ``field`` is what errors call it.
    """

    kind: GrammarKind
    source: str
    field: str = "grammar"

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool | str, *, field: str = "grammar"
    ) -> Grammar:
        """Return the grammar of JSON that a schema describes, white space between parts allowed.

        Raises:
            GrammarError: a text that is no JSON, or JSON that is no schema.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            if isinstance(parsed, Mapping):
                parsed = {"x-guidance": _LOOSE, **parsed}
            elif not isinstance(parsed, bool):
                raise TypeError("a schema is an object")
            source = json.dumps(parsed)
        except (ValueError, TypeError, RecursionError) as error:
            raise grammar_error(
                field, f"is no JSON schema: {error}", "Send a JSON schema, an object."
            ) from error
        return cls("json_schema", source, field)

    @classmethod
    def json_object(cls, *, field: str = "grammar") -> Grammar:
        """Return the grammar of any JSON object."""
        return cls.json_schema({"type": "object"}, field=field)

    @classmethod
    def regex(cls, pattern: str, *, field: str = "grammar") -> Grammar:
        """Return the grammar of a regular expression, which the whole output matches."""
        return cls("regex", pattern, field)

    @classmethod
    def lark(cls, source: str, *, field: str = "grammar") -> Grammar:
        """Return a context-free grammar; its first rule is ``start``."""
        return cls("lark", source, field)

    @classmethod
    def tool_calls(
        cls, tools: Sequence[Mapping[str, Any]], *, several: bool = True, field: str = "tools"
    ) -> Grammar:
        """Return the grammar of one call of ``tools``, or ``several``, as our template writes them.

        A call is ``<tool_call>{"name": …, "arguments": …}</tool_call>``; arguments fit the tool's
        ``parameters``, a JSON schema. Calls stand on lines of their own.

        Raises:
            GrammarError: there is no tool, or its parameters are no JSON schema.
        """
        if not tools:
            raise grammar_error(
                field, "has no tool that could be called", "Send at least one function tool."
            )
        functions = [tool.get("function", tool) for tool in tools]
        rules = [_tool_rules(number, each, field) for number, each in enumerate(functions)]
        names = " | ".join(f"tool_{number}" for number in range(len(rules)))
        start = 'start: call ("\\n" call)*' if several else "start: call"
        call = f'call: "<tool_call>" /\\n?/ ({names}) /\\n?/ "</tool_call>"'
        return cls("lark", "\n".join([start, call, *rules]), field)

    def validate(self) -> None:
        """Check the fields' types and length; whether it compiles shows when it is compiled.

        Raises:
            GrammarError: a field is wrong.
        """
        text = isinstance(self.source, str) and 1 <= len(self.source) <= MAX_SOURCE
        if self.kind not in ("json_schema", "regex", "lark") or not text:
            raise grammar_error(
                self.field,
                f"is no text of 1 to {MAX_SOURCE} characters, or of a kind that is not known",
                "Make it with Grammar.json_schema, .regex, .lark or .tool_calls.",
            )


def grammar_error(field: str, problem: str, remedy: str) -> GrammarError:
    """Return the error of a grammar that ``field`` holds; its message begins with the field."""
    return GrammarError(f"{field} {problem}.", remedy=remedy, param=field)


def check_compiled(grammar: Grammar | None, compiled: object) -> None:
    """Check that a grammar comes compiled: without, it would be ignored.

    Raises:
        InternalError: there is a grammar, but it is not compiled.
    """
    if grammar is not None and compiled is None:
        raise InternalError("A turn with a grammar was opened without its compiled form.")


def _tool_rules(number: int, function: Mapping[str, Any], field: str) -> str:
    """Return the rules of one tool: a root of its own for its schema, so that ``$ref`` works."""
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise grammar_error(
            f"{field}[{number}].function.parameters",
            "is no JSON schema",
            "Send a JSON schema, an object, or leave it out.",
        )
    schema = {"x-guidance": _COMPACT, "type": "object", **parameters}
    name = json.dumps(function.get("name"), ensure_ascii=False)
    opening = json.dumps(f'{{"name": {name}, "arguments": ', ensure_ascii=False)
    return f'tool_{number}: {opening} args_{number} "}}"\nargs_{number}: %json {json.dumps(schema)}'
