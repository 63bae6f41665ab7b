"""What an answer has to look like, as clients ask for it: one grammar, or a closed set. Pure.

Three dialects ask for the same: OpenAI's ``response_format`` and ``tool_choice``, vLLM's
``structured_outputs``, and its older ``guided_*`` fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrt.engine.grammar import Grammar
from agentrt.serving.errors import FieldError

__all__ = ["FIELDS", "Structure", "called_grammar", "structure"]

FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
)


@dataclass(frozen=True, slots=True)
class Structure:
    """At most one of the two is set."""

    grammar: Grammar | None = None
    choices: tuple[str, ...] | None = None


def structure(body: Mapping[str, Any]) -> Structure:
    """Return what the body asks of the answer's form.

    Raises:
        FieldError: a field is malformed or not supported, or two of them are set.
        GrammarError: a schema is no JSON schema.
    """
    asked = [name for name in FIELDS if body.get(name) is not None and not _plain(name, body[name])]
    if len(asked) > 1:
        raise FieldError(
            asked[1], f"is set together with {asked[0]}", remedy="Leave out one of the two."
        )
    return _READERS[asked[0]](body[asked[0]], asked[0]) if asked else Structure()


def _plain(name: str, value: Any) -> bool:
    """Say whether a field asks for nothing."""
    if name == "response_format":
        return isinstance(value, Mapping) and value.get("type") == "text"
    return name == "structured_outputs" and value == {}


def _response_format(value: Any, field: str) -> Structure:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "json_object":
        return Structure(Grammar.json_object(field=field))
    if kind == "json_schema":
        named = value.get("json_schema")
        schema = named.get("schema", {}) if isinstance(named, Mapping) else None
        return _schema(schema, f"{field}.json_schema.schema")
    raise FieldError(
        field,
        f"has type {kind!r}",
        remedy="Use type text, json_object, or json_schema with {'json_schema': {'schema': …}}.",
    )


def _structured_outputs(value: Any, field: str) -> Structure:
    if not isinstance(value, Mapping):
        raise FieldError(field, "is no object", remedy="Send an object, or leave it out.")
    asked = {key: part for key, part in value.items() if part is not None and part is not False}
    known = [key for key in asked if key in _PARTS]
    if len(known) != 1 or len(asked) != 1:
        raise FieldError(
            field,
            f"holds {', '.join(asked) or 'nothing'}",
            remedy=f"Send exactly one of {', '.join(_PARTS)}.",
        )
    return _PARTS[known[0]](asked[known[0]], f"{field}.{known[0]}")


def _schema(value: Any, field: str) -> Structure:
    if not isinstance(value, Mapping | str | bool):
        raise FieldError(field, "is no JSON schema", remedy="Send a JSON schema, an object.")
    return Structure(Grammar.json_schema(value, field=field))


def _object(value: Any, field: str) -> Structure:
    if value is not True:
        raise FieldError(field, f"is {value!r}", remedy="Send true, or leave it out.")
    return Structure(Grammar.json_object(field=field))


def _regex(value: Any, field: str) -> Structure:
    return Structure(Grammar.regex(_text(value, field), field=field))


def _lark(value: Any, field: str) -> Structure:
    return Structure(Grammar.lark(_text(value, field), field=field))


def _text(value: Any, field: str) -> str:
    if isinstance(value, str) and value:
        return value
    raise FieldError(field, "is no text", remedy="Send a string, or leave it out.")


def _choice(value: Any, field: str) -> Structure:
    if not isinstance(value, list):
        raise FieldError(field, "is no list", remedy="Send a list, or leave it out.")
    return Structure(choices=tuple(value))


_PARTS: dict[str, Callable[[Any, str], Structure]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _regex,
    "grammar": _lark,
    "choice": _choice,
}
_READERS: dict[str, Callable[[Any, str], Structure]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_grammar": _lark,
    "guided_choice": _choice,
}


def called_grammar(
    choice: Any, tools: Sequence[Mapping[str, Any]], *, several: bool
) -> Grammar | None:
    """Return the grammar of the calls that ``tool_choice`` demands, None if it demands none.

    Raises:
        FieldError: the choice is malformed or names no tool of the request.
        GrammarError: there is no tool, or its parameters are no JSON schema.
    """
    if choice in (None, "auto", "none"):
        return None
    if not tools:
        raise FieldError(
            "tool_choice",
            "demands a call, but there is no function tool",
            remedy="Send at least one function tool, or leave it out.",
        )
    if choice == "required":
        return Grammar.tool_calls(tools, several=several)
    name = _named(choice)
    asked = [tool for tool in tools if tool["function"]["name"] == name]
    if name is None or not asked:
        raise FieldError(
            "tool_choice",
            f"{choice!r} is none of the tools" if name is not None else f"is {choice!r}",
            remedy='Use "auto", "none", "required", or '
            '{"type": "function", "function": {"name": …}} with the name of one of the tools.',
        )
    return Grammar.tool_calls(asked[:1], several=False)


def _named(choice: Any) -> str | None:
    """Return the function that a choice names, in either of OpenAI's two forms."""
    if not isinstance(choice, Mapping) or choice.get("type") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
