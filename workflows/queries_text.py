"""Templates in languages without bound parameters: PromQL and regular expressions.

A placeholder is ``{name}``. A value is escaped for the exact place it stands in, and a place where
no escaping is safe is refused when the template is read, not when it is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentrt.workflows.queries_model import BadArgument, Query, QueryParameter, QueryValue

__all__ = [
    "Piece",
    "check_pattern",
    "check_promql",
    "fill",
    "names_in",
    "pattern_pieces",
    "promql_pieces",
    "render_pattern",
    "render_promql",
]

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_BARE_TYPES = ("integer", "number", "duration")


class Piece(NamedTuple):
    """A part of a template: literal text, or the placeholder ``name`` in ``place``.

    Places of PromQL: bare, string (``"…"`` or ``'…'``), matcher (such a string after ``=~`` or
    ``!~``), raw (a backtick string), comment, joined (bare, but touching a name). Places of a
    regular expression: bare, class (within ``[…]``).
    """

    text: str
    name: str = ""
    place: str = ""


def names_in(text: str) -> list[str]:
    """Return the names of the ``{name}`` placeholders of a plain text, each once, in order."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(text)))


def fill(text: str, values: Mapping[str, QueryValue]) -> str:
    """Return a plain text with its placeholders filled in; a value is not scanned again."""
    return _PLACEHOLDER.sub(lambda match: plain(values.get(match[1])), text)


def plain(value: QueryValue) -> str:
    """Return a value as the text it is: nothing for None, ``true`` and ``false`` in small."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


# PromQL

_PROMQL = re.compile(r"""(?P<comment>\#[^\n]*) | (?P<quote>["'`]) | (?P<gap>\s+)""", re.VERBOSE)


def promql_pieces(text: str) -> list[Piece]:
    """Split a PromQL template into its literal texts and placeholders with their places."""
    pieces: list[Piece] = []
    position, place, operator = 0, "bare", ""
    literal = ""
    while position < len(text):
        found = _PLACEHOLDER.match(text, position)
        if found:
            pieces += [Piece(literal), Piece("", found[1], _promql_place(text, found, place))]
            literal, position = "", found.end()
            continue
        place, step = _promql_step(text, position, place, operator)
        if place == "bare" and not text[position].isspace():
            operator = (operator + text[position])[-2:]
        literal += text[position : position + step]
        position += step
    return [*pieces, Piece(literal)]


_OPENS = {'"': 'string"', "'": "string'", "`": "raw`", "#": "comment"}


def _promql_step(text: str, position: int, place: str, operator: str) -> tuple[str, int]:
    """Return the place after the character at ``position``, and how many characters that took."""
    char = text[position]
    if place == "bare":
        opened = _OPENS.get(char, "bare")
        regex = opened.startswith("string") and operator in ("=~", "!~")
        return (opened.replace("string", "matcher") if regex else opened), 1
    if place == "comment":
        return ("bare" if char == "\n" else place), 1
    if char == "\\" and not place.startswith("raw"):
        return place, 2
    return ("bare" if char == place[-1] else place), 1


def _promql_place(text: str, found: re.Match[str], place: str) -> str:
    if place != "bare":
        return place.rstrip("\"'`")
    around = text[max(0, found.start() - 1) : found.start()] + text[found.end() : found.end() + 1]
    return "joined" if re.search(r"[\w:.]", around) else "bare"


def check_promql(pieces: Sequence[Piece], parameters: Mapping[str, QueryParameter]) -> str | None:
    """Return what is wrong with the placeholders of a PromQL template, or None."""
    for piece in pieces:
        if piece.place in ("raw", "comment"):
            return f"{{{piece.name}}} stands in a {piece.place} text, where nothing can be escaped"
        if piece.place == "joined":
            return f"{{{piece.name}}} touches a name or number; a value must stand by itself"
        parameter = parameters.get(piece.name)
        if piece.place == "bare" and parameter and not _goes_bare(parameter):
            kinds = "an integer, a number, a duration or a timestamp in epoch format"
            return f"{{{piece.name}}} is a {parameter.type} outside quotes, where only {kinds} may"
    return None


def _goes_bare(parameter: QueryParameter) -> bool:
    epoch = parameter.type == "timestamp" and parameter.format.startswith("epoch")
    return epoch or parameter.type in _BARE_TYPES


def render_promql(query: Query, values: Mapping[str, QueryValue]) -> str:
    """Return the PromQL of a query with its values escaped into it.

    Raises:
        BadArgument: an optional parameter without a value stands outside quotes.
    """
    return "".join(_promql_value(piece, values) for piece in promql_pieces(query.text))


def _promql_value(piece: Piece, values: Mapping[str, QueryValue]) -> str:
    if not piece.name:
        return piece.text
    value = values.get(piece.name)
    if piece.place == "bare":
        if value is None:
            raise BadArgument(
                f"The query parameter {piece.name!r} has no value.", remedy="Give it one."
            )
        number = isinstance(value, int | float) and value < 0
        return f"({value})" if number else str(value)
    text = plain(value)
    return _go_string(_re2(text) if piece.place == "matcher" else text)


def _re2(text: str) -> str:
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


_GO_ESCAPES = {"\\": "\\\\", '"': '\\"', "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _go_string(text: str) -> str:
    return "".join(_GO_ESCAPES.get(char) or _go_character(char) for char in text)


def _go_character(char: str) -> str:
    return char if char.isprintable() else f"\\U{ord(char):08x}"


# Regular expressions


def pattern_pieces(text: str) -> list[Piece]:
    """Split a regular expression into its literal texts and placeholders with their places."""
    return list(_pattern_walk(text))


def _pattern_walk(text: str) -> Iterator[Piece]:
    position, start, in_class = 0, 0, False
    while position < len(text):
        found = _PLACEHOLDER.match(text, position)
        if found:
            yield Piece(text[start:position])
            yield Piece("", found[1], "class" if in_class else "bare")
            position = start = found.end()
            continue
        opened = text[position] == "[" and not in_class
        closed = text[position] == "]" and in_class
        position += 2 if text[position] == "\\" else 1
        if opened:
            # "]" is an ordinary character right after "[" or "[^".
            position += text.startswith("^", position)
            position += text.startswith("]", position)
        in_class = opened or (in_class and not closed)
    yield Piece(text[start:])


def check_pattern(pieces: Sequence[Piece], text: str) -> str | None:
    """Return what is wrong with a regular expression and its placeholders, or None."""
    for piece in pieces:
        if piece.place == "class":
            return f"{{{piece.name}}} stands in a set [...], where it would not be one text"
    # A value could end such a comment and go on as an expression.
    if re.search(r"\(\?#|\(\?[a-zA-Z]*x", text):
        return "comments and the x flag are not taken in patterns"
    try:
        re.compile("".join(piece.text or "(?:x)" * bool(piece.name) for piece in pieces))
    except (re.error, RecursionError, OverflowError) as error:
        return f"the pattern is no regular expression: {error}"
    return None


def render_pattern(query: Query, values: Mapping[str, QueryValue]) -> str:
    """Return the regular expression of a query; each value matches itself and nothing else."""
    return "".join(
        f"(?:{re.escape(plain(values.get(piece.name)))})" if piece.name else piece.text
        for piece in pattern_pieces(query.text)
    )
