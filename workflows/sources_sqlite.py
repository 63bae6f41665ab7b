"""SQLite files, opened read-only, with an authorizer that lets nothing but reading through."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from urllib.parse import quote

from agentrt.workflows.queries_model import BoundQuery, Control, QueryFailed, QueryResult
from agentrt.workflows.sources_common import failed, limited, source_file, stopped, unique_names

__all__ = ["ask_sqlite"]

_READS = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
_UNSAFE = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")
_LARGEST_CELL = 16 * 2**20
_STEPS_BETWEEN_CHECKS = 1000
_BUSY = 1.0


def ask_sqlite(bound: BoundQuery, control: Control) -> QueryResult:
    """Answer a query from a SQLite file.

    Raises:
        QueryTimeout: the limit passed, or it was cancelled.
        QueryFailed: there is no such file, or SQLite refused the statement.
    """
    uri = f"file:{quote(str(source_file(bound).resolve()))}?mode=ro"
    stop = control.deadline()
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY)) as database:
            _fence(database, stop)
            cursor = database.execute(bound.statement, dict(bound.values))
            names = [column[0] for column in cursor.description or ()]
            return limited(bound, unique_names(names), cursor)
    except (sqlite3.Error, OverflowError) as error:
        if stop():
            raise stopped(bound, control) from error
        raise _refused(bound, error) from error


def _fence(database: sqlite3.Connection, stop: Callable[[], bool]) -> None:
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    database.execute("PRAGMA query_only = ON")
    # A statement cannot make a cell that fills the memory, such as zeroblob(1000000000).
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_CELL)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    database.set_progress_handler(stop, _STEPS_BETWEEN_CHECKS)
    database.set_authorizer(_authorize)


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, via: str | None
) -> int:
    if action not in _READS:
        return sqlite3.SQLITE_DENY
    unsafe = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _UNSAFE
    return sqlite3.SQLITE_DENY if unsafe else sqlite3.SQLITE_OK


def _refused(bound: BoundQuery, error: Exception) -> QueryFailed:
    return failed(
        bound, f"SQLite: {error}", f"Try the statement on {bound.source.settings['path']}."
    )
