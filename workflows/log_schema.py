"""The log's tables, how its file is opened, and SQLite's errors in our words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentrt.errors import BackendUnavailable, CapacityError

__all__ = ["LogError", "LogFull", "prepare", "translated"]

_VERSION: Final = 1
_APPEND_ONLY: Final = "\n".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;"
    for table in ("runs", "events")
    for verb in ("UPDATE", "DELETE")
)
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
  run_id TEXT PRIMARY KEY, guide TEXT NOT NULL, fingerprint TEXT NOT NULL, created TEXT NOT NULL,
  parent TEXT, fork_step TEXT
);
CREATE TABLE IF NOT EXISTS events (
  run_id TEXT NOT NULL REFERENCES runs, idx INTEGER NOT NULL, time TEXT NOT NULL,
  kind TEXT NOT NULL, step TEXT, data TEXT NOT NULL, PRIMARY KEY (run_id, idx)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
  run_id TEXT PRIMARY KEY, token TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL,
  boot TEXT NOT NULL, namespace TEXT NOT NULL, host TEXT NOT NULL, since TEXT NOT NULL
);
{_APPEND_ONLY}
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class LogError(BackendUnavailable):
    """The log's file cannot be read or written."""


class LogFull(CapacityError, OSError):
    """No room for a further event: nothing was appended, and the run can be resumed later."""


def prepare(path: Path, *, durable: bool) -> sqlite3.Connection:
    """Open the file, making it and its tables where they are missing.

    Raises:
        LogError: it cannot be opened, is no log, or was made by a newer agentrt.
        LogFull: the disk is full.
    """
    with translated(path):
        db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        try:
            _set_up(db, path, durable=durable)
        except BaseException:
            db.close()
            raise
    return db


def _set_up(db: sqlite3.Connection, path: Path, *, durable: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise LogError(
            f"{path} has format {version}; this agentrt knows {_VERSION}.",
            remedy="Use the newer agentrt that made it, or another file.",
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    if version == 0:
        db.executescript(_SCHEMA)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as ``LogFull`` or ``LogError``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise LogFull(
                f"No room for another event in {path}: {error}.",
                remedy="Free some space on that disk, then: agentrt guide resume RUN.",
            ) from error
        raise LogError(
            f"The log {path} cannot be used: {error}.",
            remedy="Check that it is a log, that its folder exists and can be written to.",
        ) from error
