"""SQL read just far enough: one SELECT, its placeholders, nothing that writes.

This is the first of two fences. The second is the source's own: a read-only connection with an
authorizer (SQLite) or a read-only transaction (PostgreSQL).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["SqlToken", "check_statement", "placeholders", "sql_tokens", "to_format_style"]


class SqlToken(NamedTuple):
    """A piece of a statement; ``kind`` is word, name, text, comment, parameter, end or other."""

    kind: str
    text: str


# The order decides: casts before parameters, comments before operators.
_TOKEN = re.compile(
    r"""
    (?P<comment>  --[^\n]* | /\*.*?(?:\*/|\Z) )
  | (?P<text>     [eE]'(?:[^'\\]|''|\\.)*'? | (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*'?
                  | (?P<dollar>\$(?:[A-Za-z_]\w*)?\$).*?(?:(?P=dollar)|\Z) )
  | (?P<name>     "(?:[^"]|"")*"? | `(?:[^`;]|``)*`? | \[[^\]\n;]*[A-Za-z_][^\]\n;]*\] )
  | (?P<cast>     :: )
  | (?P<parameter>:[A-Za-z_]\w* )
  | (?P<foreign>  [$@][A-Za-z0-9_]+ | \?\d* )
  | (?P<word>     [^\W\d]\w* )
  | (?P<number>   \d[\w.]* )
  | (?P<end>      ; )
  | (?P<other>    \s+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)

_FIRST = ("select", "with", "values")
# Whatever else writes can only come first in a statement (a MERGE has its INTO).
_WRITES = frozenset(("insert", "update", "delete", "into"))
_UNSAFE_FUNCTIONS = re.compile(
    "load_extension|readfile|writefile|edit|fts3_tokenizer|dblink.*|lo_import|lo_export|set_config"
    "|pg_read_.*|pg_ls_.*|pg_stat_file|pg_(terminate|cancel)_backend|pg_reload_conf|pg_rotate_.*"
    "|pg_(try_)?advisory_.*|(query|cursor|table|schema|database)_to_xml.*|setval|nextval"
)


def sql_tokens(statement: str) -> Iterator[SqlToken]:
    """Yield every piece of a statement; joined together they are the statement again."""
    for match in _TOKEN.finditer(statement):
        kind = match.lastgroup or "other"
        # lastgroup is the outermost group that closed last, so "dollar" cannot come out here.
        yield SqlToken(kind, match.group())


def placeholders(statement: str) -> list[str]:
    """Return the names of the ``:name`` placeholders, each once, in order of appearance."""
    names = (token.text[1:] for token in sql_tokens(statement) if token.kind == "parameter")
    return list(dict.fromkeys(names))


def check_statement(statement: str, dialect: str) -> str | None:
    """Return what is wrong with a statement, or None where it is a single one that only reads.

    ``dialect`` is sqlite or postgres.
    """
    tokens = [token for token in sql_tokens(statement) if not _is_filler(token)]
    while tokens and tokens[-1].kind == "end":
        tokens.pop()
    if not tokens:
        return "the statement is empty"
    if any(token.kind == "end" for token in tokens):
        return "there are several statements"
    if tokens[0].text.lower() not in _FIRST:
        return f"a query starts with SELECT, WITH or VALUES, not with {tokens[0].text[:40]!r}"
    return _forbidden(tokens, dialect)


def _is_filler(token: SqlToken) -> bool:
    return token.kind == "comment" or (token.kind == "other" and token.text.isspace())


def _forbidden(tokens: list[SqlToken], dialect: str) -> str | None:
    for token, after in zip(tokens, [*tokens[1:], SqlToken("other", "")], strict=True):
        if token.kind == "foreign" and (dialect == "sqlite" or token.text[0] == "$"):
            return f"the placeholder {token.text} is of another style than :name"
        called = after.text == "("
        word = token.text.strip('"`[]').lower()
        if called and token.kind in ("word", "name") and _UNSAFE_FUNCTIONS.fullmatch(word):
            return f"the function {word} does more than read"
        if token.kind == "word" and word in _WRITES:
            return f"{token.text.upper()} does more than read"
    return None


def to_format_style(statement: str) -> str:
    """Return the statement with ``%(name)s`` for ``:name``, as PostgreSQL's driver takes it."""
    return "".join(_format_token(token) for token in sql_tokens(statement))


def _format_token(token: SqlToken) -> str:
    if token.kind == "parameter":
        return f"%({token.text[1:]})s"
    # The driver reads "%" everywhere, also within texts and comments.
    return token.text.replace("%", "%%")
