"""What queries and commands returned, kept outside prompts: handles to tables in one SQLite file.

A :class:`Handle` says what a table is (columns with types, row count, digest, sample) and is small
enough for a log or a prompt; the rows stay in the file. Tables are stored by their content: the
same rows put twice are stored once. Every ``put`` is one transaction, so a process that dies in
the middle leaves either the whole table or nothing.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrt.workflows.data_handle import (
    Column,
    DataError,
    Handle,
    Row,
    dataset_texts,
    describe,
    summary_lines,
)
from agentrt.workflows.data_values import Scalar

__all__ = ["Column", "DataError", "DataStore", "Handle", "Row", "Scalar"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dataset (digest TEXT PRIMARY KEY, columns TEXT NOT NULL, rows INTEGER
    NOT NULL, sample TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (digest TEXT NOT NULL, position INTEGER NOT NULL, cells TEXT
    NOT NULL, PRIMARY KEY (digest, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS handle (id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL
    REFERENCES dataset (digest), truncated INTEGER NOT NULL);
"""


class DataStore:
    """The tables of one run, in ``directory/data.db``. Safe to use from several threads.

    Args:
        directory: made if it is not there.

    Raises:
        DataError: the directory or the file cannot be used.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / "data.db"
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=10
            )
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error
        with self._errors():
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)

    def __enter__(self) -> DataStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was put stays."""
        with self._lock:
            self._db.close()

    def put(
        self,
        name: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        *,
        truncated: bool = False,
    ) -> Handle:
        """Store a table and return its handle; the same name and content give the same handle.

        Values that JSON does not know are stored as what they say: times and dates as ISO-8601
        text, bytes as hexadecimal text, decimals as numbers, NaN as no value.

        Raises:
            DataError: a row is not as long as ``columns``, a column name occurs twice, or the
                file cannot be written.
        """
        handle, encoded = describe(name, columns, rows, truncated)
        with self._transaction():
            self._insert(handle, encoded)
        return handle

    def get(self, handle_id: str) -> Handle:
        """Return a stored handle.

        Raises:
            DataError: there is none of this id.
        """
        found = list(self._load("WHERE handle.id = ?", (handle_id,)))
        if not found:
            raise DataError(
                f"There is no data with the handle {handle_id!r} in {self.path}.",
                remedy="The run's log names the handles that it made.",
            )
        return found[0]

    def handles(self) -> list[Handle]:
        """Return every handle, in the order in which they were first put."""
        return list(self._load("ORDER BY handle.rowid", ()))

    def rows(self, handle: Handle | str, *, offset: int = 0, limit: int = -1) -> list[Row]:
        """Return rows of a table, at most ``limit`` of them (all if negative).

        Raises:
            DataError: the table is not stored here, or the file cannot be read.
        """
        known = self.get(handle if isinstance(handle, str) else handle.id)
        statement = (
            "SELECT cells FROM cells WHERE digest = ? AND position >= ? ORDER BY position LIMIT ?"
        )
        with self._errors(), self._lock:
            found = self._db.execute(statement, (known.digest, offset, limit)).fetchall()
        return [tuple(json.loads(cells)) for (cells,) in found]

    def columns(self, handle: Handle | str) -> dict[str, list[Scalar]]:
        """Return a table as one list per column: what predicates are evaluated on.

        Raises:
            DataError: the table is not stored here, or the file cannot be read.
        """
        known = self.get(handle if isinstance(handle, str) else handle.id)
        rows = self.rows(known)
        return {
            column.name: [row[position] for row in rows]
            for position, column in enumerate(known.columns)
        }

    def summary(self, handle: Handle | str, *, limit: int = 2000) -> str:
        """Return what a prompt may say of a table, at most ``limit`` characters of it."""
        known = self.get(handle) if isinstance(handle, str) else handle
        text = "\n".join(summary_lines(known))
        return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"

    def export(self, handle: Handle | str, path: str | Path) -> Path:
        """Write a table to a ``.csv`` or ``.jsonl`` file, for a command in a sandbox to read.

        Raises:
            DataError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        known = self.get(handle if isinstance(handle, str) else handle.id)
        names = [column.name for column in known.columns]
        writers = {".csv": _write_csv, ".jsonl": _write_jsonl}
        if target.suffix not in writers:
            raise DataError(
                f"Data cannot be exported to {target.name}.", remedy="Use .csv or .jsonl."
            )
        try:
            writers[target.suffix](target, names, self.rows(known))
        except OSError as error:
            raise _unusable(target, error) from error
        return target

    def _insert(self, handle: Handle, encoded: Sequence[str]) -> None:
        made = self._db.execute(
            "INSERT OR IGNORE INTO dataset VALUES (?, ?, ?, ?)",
            (handle.digest, *dataset_texts(handle)),
        )
        if made.rowcount:
            self._db.executemany(
                "INSERT INTO cells VALUES (?, ?, ?)",
                ((handle.digest, position, cells) for position, cells in enumerate(encoded)),
            )
        self._db.execute(
            "INSERT OR IGNORE INTO handle VALUES (?, ?, ?, ?)",
            (handle.id, handle.name, handle.digest, int(handle.truncated)),
        )

    def _load(self, clause: str, values: tuple[Any, ...]) -> Iterator[Handle]:
        statement = (
            "SELECT handle.id, name, handle.digest, truncated, columns, rows, sample FROM handle "
            f"JOIN dataset ON dataset.digest = handle.digest {clause}"
        )
        with self._errors(), self._lock:
            found = self._db.execute(statement, values).fetchall()
        for row in found:
            names = ("id", "name", "digest", "truncated", "columns", "rows", "sample")
            data = dict(zip(names, row, strict=True))
            data |= {key: json.loads(data[key]) for key in ("columns", "sample")}
            yield Handle.from_json(data)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite may have rolled back by itself already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def _write_jsonl(path: Path, names: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(names, row, strict=True))) + "\n")


def _unusable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"The data in {path} cannot be used: {error}.",
        remedy="Check that the disk has room and the folder may be written.",
    )
