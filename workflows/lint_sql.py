"""What is wrong with a SQL text: form, dialect, what it depends on. Nothing is run.

SQLite's own parser is asked for SQLite (``EXPLAIN`` compiles and does not run); other dialects get
a check of quotes, parentheses, the order of clauses and what must stand between them.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentrt.workflows.lint_vocabulary import (
    CHANGES,
    CLOCK_CALLS,
    CLOCK_WORDS,
    DIALECTS,
    NEEDS_RIGHT,
    NO_LEFT,
)
from agentrt.workflows.queries_sql import SqlToken, check_statement, placeholders, sql_tokens

__all__ = ["Problem", "selected_columns", "sql_problems"]

_CLAUSES = ("select", "from", "where", "group", "having", "window", "order", "limit", "offset")
_RESTART = frozenset(["union", "intersect", "except"])
_TABLE_ERRORS = ("no such table", "no such column", "no such function", "ambiguous column")


class Problem(NamedTuple):
    """A finding's rule and text, and how many lines below the statement's first it stands."""

    rule: str
    message: str
    offset: int = 0


def sql_problems(text: str, dialect: str, schema: str = "") -> Iterator[Problem]:
    """Yield what is wrong with a statement. ``dialect`` is sqlite, postgres or empty (unknown)."""
    tokens = list(sql_tokens(text))
    wrong = check_statement(text, dialect or "postgres")
    if wrong:
        yield Problem(_rule_of(wrong), wrong[:1].upper() + wrong[1:] + ".")
    else:
        yield from _syntax(text, tokens, dialect, schema)
    yield from _clock(tokens)
    yield from _dialect(tokens, dialect)
    for name, offset in _quoted(tokens):
        yield Problem("quoted-placeholder", f"{name} between quotes is a text.", offset)


def selected_columns(text: str) -> frozenset[str] | None:
    """Return the columns that a statement answers with; None where that is not plain to see."""
    solid = _solid(list(sql_tokens(text)))
    if not solid or solid[0][0].text.lower() != "select":
        return None
    items: list[list[str]] = [[]]
    depth = 0
    for token, _ in solid[1:]:
        word = token.text.lower()
        if depth == 0 and (word == "from" or token.kind == "end"):
            break
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth == 0 and word == ",":
            items.append([])
        elif word not in ("distinct", "all") or items[-1]:
            items[-1].append(token.text)
    names = [item[-1].strip('"`[]') if item else "" for item in items]
    if any(not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() == "end" for name in names):
        return None
    return frozenset(name.lower() for name in names)


def _rule_of(wrong: str) -> str:
    first = re.search(r"not with '(\w+)'", wrong)
    misspelt = first is not None and first[1].lower() not in CHANGES
    return "sql-syntax" if misspelt or "empty" in wrong else "sql-not-read-only"


def _syntax(text: str, tokens: Sequence[SqlToken], dialect: str, schema: str) -> Iterator[Problem]:
    if dialect == "sqlite":
        problem = _compiled(text, schema)
        if problem:
            yield problem
        return
    yield from _shape(tokens)


def _compiled(text: str, schema: str) -> Problem | None:
    """Let SQLite compile the statement against the schema, in memory."""
    connection = sqlite3.connect(":memory:")
    try:
        if schema:
            connection.executescript(schema)
        connection.execute(f"EXPLAIN {text}", dict.fromkeys(placeholders(text)))
    except sqlite3.Error as error:
        message = str(error)
        if not message.startswith(_TABLE_ERRORS):
            return Problem("sql-syntax", f"SQLite says: {message}.", _offset(text, message))
        if schema:
            return Problem("unknown-column", f"SQLite says: {message}.")
    finally:
        connection.close()
    return None


def _offset(text: str, message: str) -> int:
    """How many lines below the first a syntax error stands.

    SQLite names the token and not its place: it is the first one up to which it says the same.
    """
    near = re.search(r'near "(.+?)"', message)
    if near is None:
        return text.rstrip().count("\n")
    for match in itertools.islice(re.finditer(re.escape(near[1]), text), 100):
        if _message(text[: match.end()]) == message:
            return text.count("\n", 0, match.start())
    return 0


def _message(text: str) -> str:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(f"EXPLAIN {text}", dict.fromkeys(placeholders(text)))
        except sqlite3.Error as error:
            return str(error)
    return ""


def _solid(tokens: Sequence[SqlToken]) -> list[tuple[SqlToken, int]]:
    """The tokens that count, each with the line it starts in."""
    kept: list[tuple[SqlToken, int]] = []
    line = 0
    for token in tokens:
        if token.kind != "comment" and not token.text.isspace():
            kept.append((token, line))
        line += token.text.count("\n")
    return kept


def _shape(tokens: Sequence[SqlToken]) -> Iterator[Problem]:
    solid = _solid(tokens)
    for token, line in solid:
        quote = token.text[:1]
        if token.kind in ("text", "name") and (
            len(token.text) < 2 or token.text[-1] not in "'\"`]$"
        ):
            yield Problem("sql-syntax", f"The quote {quote} is not closed.", line)
            return
    yield from _parentheses(solid)
    yield from _clauses(solid)
    yield from _neighbours(solid)


def _open(text: str) -> bool:
    """Whether a quoted piece lacks its closing quote."""
    return len(text) < 2 or text[-1] not in "'\"`]$"


def _parentheses(solid: Sequence[tuple[SqlToken, int]]) -> Iterator[Problem]:
    depth = 0
    for token, line in solid:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0:
            yield Problem("sql-syntax", "A parenthesis is closed that was not opened.", line)
            return
    if depth:
        yield Problem("sql-syntax", f"{depth} parenthesis is not closed.", solid[-1][1])


def _clauses(solid: Sequence[tuple[SqlToken, int]]) -> Iterator[Problem]:
    reached: list[int] = [-1]
    for at, (token, line) in enumerate(solid):
        word = token.text.lower()
        if word == "(":
            before = solid[at - 1][0] if at else SqlToken("other", "")
            # extract(day FROM ts) and OVER (ORDER BY ts) have clauses of their own.
            reached.append(len(_CLAUSES) if _called(before) else -1)
        elif word == ")" and len(reached) > 1:
            reached.pop()
        elif word in _RESTART:
            reached[-1] = -1
        elif token.kind == "word" and word in _CLAUSES and reached[-1] < len(_CLAUSES):
            place = _CLAUSES.index(word)
            if place <= reached[-1] and word not in ("limit", "offset"):
                name = _CLAUSES[reached[-1]].upper()
                yield Problem("sql-syntax", f"{word.upper()} stands after {name}.", line)
                return
            if place > 1 and reached[-1] == 0 and word in ("where", "group", "having"):
                yield Problem("sql-syntax", f"{word.upper()} stands without FROM.", line)
                return
            reached[-1] = place


def _called(before: SqlToken) -> bool:
    keywords = {"in", "as", "exists", "from", "join", "and", "or", "not", "any", "all", "where"}
    return before.kind == "word" and before.text.lower() not in keywords


def _neighbours(solid: Sequence[tuple[SqlToken, int]]) -> Iterator[Problem]:
    end = (SqlToken("end", ""), solid[-1][1] if solid else 0)
    for (token, _), (after, line) in zip(solid, [*solid[1:], end], strict=True):
        left, right = token.text.lower(), after.text.lower()
        closes = right in (")", "") or after.kind == "end"
        clause = after.kind == "word" and right in NO_LEFT
        dangling = (
            token.kind == "word" and left in NEEDS_RIGHT and (closes or clause or right == ",")
        )
        operator = left in ("=", ",", "<", ">", "+", "/", "||") and (closes or clause)
        if dangling or operator or (left == "," and right == ","):
            what = after.text.upper() or "the end"
            yield Problem(
                "sql-syntax", f"{what} stands where a value is needed after {left!r}.", line
            )
            return
        if token.kind == "word" and left in ("group", "order") and right != "by":
            yield Problem("sql-syntax", f"{left.upper()} stands without BY.", line)
            return


def _clock(tokens: Sequence[SqlToken]) -> Iterator[Problem]:
    solid = _solid(tokens)
    for at, (token, line) in enumerate(solid):
        word = token.text.lower()
        called = at + 1 < len(solid) and solid[at + 1][0].text == "("
        clock = token.kind == "word" and (word in CLOCK_WORDS or (called and word in CLOCK_CALLS))
        if clock or (token.kind == "text" and word == "'now'"):
            yield Problem("nondeterministic-query", f"{token.text} differs from run to run.", line)


def _dialect(tokens: Sequence[SqlToken], dialect: str) -> Iterator[Problem]:
    foreign: Mapping[str, str] = {
        word: other for other, words in DIALECTS.items() if other != dialect for word in words
    }
    for token, line in _solid(tokens) if dialect else ():
        word = token.text.lower()
        if token.kind == "word" and word in foreign and word not in DIALECTS[dialect]:
            yield Problem("wrong-dialect", f"{token.text} is {foreign[word]}, not {dialect}.", line)


def _quoted(tokens: Sequence[SqlToken]) -> Iterator[tuple[str, int]]:
    for token, line in _solid(tokens):
        if token.kind == "text" and (match := re.fullmatch(r"'(:[A-Za-z_]\w*)'", token.text)):
            yield match[1], line
