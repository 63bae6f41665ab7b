"""A StepFly query as text, as the original renders it, and as a statement with bound parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentrt.errors import GuideError
from agentrt.workflows.queries_model import Query, QueryParameter
from agentrt.workflows.stepfly_plugin import Field, StepFlyQuery

__all__ = ["bind_query", "compat_timestamp", "query_toml", "render_compat"]

_IDENTIFIER_PLACE = re.compile(
    r"\b(from|join|into|update|table|as|order\s+by|group\s+by)\s*$", re.I
)


def compat_timestamp(value: str) -> str:
    """Rewrite a timestamp as StepFly does: with a ``T``, that becomes a space and ``Z`` goes."""
    return value.replace("T", " ").replace("Z", "") if "T" in value else value


def render_compat(query: StepFlyQuery, values: Mapping[str, str]) -> str:
    """Return the statement that the original plugin renders from the same values.

    For comparison only: text is pasted into text, so never run it with values from outside.

    Raises:
        GuideError: a value is missing and has no default.
    """
    known = {parameter.name: parameter for parameter in query.parameters}
    for parameter in query.parameters:
        if query.form == "class" and parameter.name not in values:
            raise _missing(query, parameter.name)
    texts: list[str] = []
    for piece in query.pieces:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        value = values.get(piece.name, piece.default)
        if value is None:
            value = known[piece.name].default
        if value is None:
            raise _missing(query, piece.name)
        texts.append(compat_timestamp(value) if piece.name in query.timestamps else value)
    return "".join(texts)


def bind_query(query: StepFlyQuery, source: str = "main") -> Query:
    """Return the query with every field as a bound ``:name``; ``source`` names where it is asked.

    A field within quotes becomes a text (``'%{x}%'`` is ``'%' || :x || '%'``), one outside of
    them a number.

    Raises:
        GuideError: a field stands for a table or column, which no database can bind; or a quote
            is not closed.
    """
    text, roles = _bound_text(query)
    parameters = tuple(_bound_parameter(query, name, role) for name, role in roles.items())
    return Query(query.name, source, "sql", text, query.description, parameters)


def query_toml(query: Query) -> str:
    """Write a bound SQL query as a ``[query.NAME]`` table of a template file."""
    lines = [f"[query.{query.name}]", f"source = {_quoted(query.source)}"]
    if query.description:
        lines.append(f"description = {_quoted(query.description)}")
    lines += [f"sql = {_quoted(query.text)}"]
    for parameter in query.parameters:
        lines += ["", f"[query.{query.name}.parameters.{parameter.name}]"]
        lines.append(f"type = {_quoted(parameter.type)}")
        if parameter.type == "timestamp":
            lines.append(f"format = {_quoted(parameter.format)}")
        if not parameter.required:
            lines.append("required = false")
        if parameter.default is not None:
            lines.append(f"default = {_quoted(str(parameter.default))}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(char, char) for char in text) + '"'


def _missing(query: StepFlyQuery, name: str) -> GuideError:
    return GuideError(
        f"{query.path}: missing required parameter: {name}.", remedy=f"Give {query.name} {name!r}."
    )


@dataclass(slots=True)
class _Writer:
    """Copies a template; knows within which kind of text the next field stands."""

    query: StepFlyQuery
    out: list[str] = field(default_factory=list)
    state: str = "code"
    literal: str = ""
    parts: list[str] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)

    def text(self, text: str) -> None:
        at = 0
        while at < len(text):
            at = getattr(self, f"_{self.state}")(text, at)

    def field(self, name: str) -> None:
        if self.state == "quote":
            self._end_literal()
            self.parts.append(f":{name}")
            self.roles[name] = "string"
        elif self.state == "comment" or self.state == "block":
            self.out.append(name)
        elif self.state == "name" or _IDENTIFIER_PLACE.search("".join(self.out)):
            raise self._error(f"{name!r} stands for a table or column, which cannot be bound")
        else:
            self.out.append(f":{name}")
            self.roles.setdefault(name, "number")

    def finish(self) -> tuple[str, dict[str, str]]:
        if self.state not in ("code", "comment"):
            raise self._error("a quote or comment is not closed")
        return "".join(self.out), self.roles

    def _code(self, text: str, at: int) -> int:
        char, pair = text[at], text[at : at + 2]
        if char == "'":
            self.state, self.parts, self.literal = "quote", [], ""
            return at + 1
        opened = {"--": "comment", "/*": "block"}.get(pair) or ("name" if char == '"' else "")
        self.state = opened or "code"
        taken = pair if opened in ("comment", "block") else char
        self.out.append(taken)
        return at + len(taken)

    def _quote(self, text: str, at: int) -> int:
        if text[at] != "'":
            self.literal += text[at]
            return at + 1
        if text[at : at + 2] == "''":
            self.literal += "''"
            return at + 2
        self._end_literal()
        self.out.append(" || ".join(self.parts) or "''")
        self.state = "code"
        return at + 1

    def _comment(self, text: str, at: int) -> int:
        self.out.append(text[at])
        self.state = "code" if text[at] == "\n" else "comment"
        return at + 1

    def _block(self, text: str, at: int) -> int:
        if text[at : at + 2] == "*/":
            self.out.append("*/")
            self.state = "code"
            return at + 2
        self.out.append(text[at])
        return at + 1

    def _name(self, text: str, at: int) -> int:
        self.out.append(text[at])
        self.state = "code" if text[at] == '"' else "name"
        return at + 1

    def _end_literal(self) -> None:
        if self.literal:
            self.parts.append(f"'{self.literal}'")
        self.literal = ""

    def _error(self, what: str) -> GuideError:
        return GuideError(
            f"{self.query.path}: {self.query.name}: {what}.",
            remedy="Rewrite the template so that its fields are values.",
        )


def _bound_text(query: StepFlyQuery) -> tuple[str, dict[str, str]]:
    writer = _Writer(query)
    for piece in query.pieces:
        if isinstance(piece, Field):
            writer.field(piece.name)
        else:
            writer.text(piece)
    return writer.finish()


def _bound_parameter(query: StepFlyQuery, name: str, role: str) -> QueryParameter:
    declared = next((each for each in query.parameters if each.name == name), None)
    inline = next(
        (
            piece.default
            for piece in query.pieces
            if isinstance(piece, Field) and piece.name == name
        ),
        None,
    )
    default = inline if inline is not None else declared.default if declared else None
    kind = "timestamp" if name in query.timestamps else role
    required = default is None and (declared is None or declared.required)
    description = declared.description if declared else ""
    return QueryParameter(name, kind, required, default, description, format="space")
