"""The append-only log of guide runs: one SQLite file, in WAL mode. A run is the fold of its events.

What ``append`` returned for survives ``kill -9`` of this process at any moment. After a power loss
the file is still consistent, but the last appends before it may be missing; ``durable=True`` waits
for the disk on each append and loses none, at the price of one disk sync per event. Triggers refuse
to change or delete an event. Readers, in this or other processes, never wait for the writer.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentrt.errors import InvalidRequest
from agentrt.workflows.events import Event
from agentrt.workflows.log_fork import Fork, forked_events
from agentrt.workflows.log_owner import Owner, RunBusy, Survey, survey, this_process
from agentrt.workflows.log_payload import PayloadTooLarge, encode
from agentrt.workflows.log_schema import LogError, LogFull, prepare, translated
from agentrt.workflows.schedule_fold import fold

__all__ = ["LogError", "LogFull", "PayloadTooLarge", "RunBusy", "RunInfo", "RunLog", "fold"]

_COLUMNS = "run_id, guide, fingerprint, created, parent, fork_step"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run. ``created`` is ISO-8601 UTC; ``parent`` and ``fork_step`` say what it is a fork of.

    ``fingerprint`` is the plan's when the run was created.
    """

    run_id: str
    guide: str
    fingerprint: str
    created: str
    parent: str | None = None
    fork_step: str | None = None


class RunLog:
    """All runs in one file, which is made where there is none. Safe to use from several threads.

    Args:
        path: the file; its folder must exist.
        clock: seconds since the epoch, for the times of events.
        durable: wait for the disk on each append, so that a power loss loses nothing either.
        max_bytes: size of an event's data as JSON beyond which it is refused.
        owner: who this process is; for tests.
        alive: whether another owner's process still lives; for tests.

    Raises:
        LogError: the file cannot be opened, or was made by a newer agentrt.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        durable: bool = False,
        max_bytes: int = 256 * 1024,
        owner: Owner | None = None,
        alive: Callable[[Owner], Survey] = survey,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._max_bytes = max_bytes
        self._owner = owner or this_process()
        self._alive = alive
        self._lock = threading.RLock()
        self._db = prepare(self.path, durable=durable)

    def close(self) -> None:
        """Give up this process's runs and close the file. Closing twice is fine."""
        with self._lock:
            # Closed before, or the disk is full: a dead owner is found out by the next claim.
            with suppress(sqlite3.Error):
                self._db.execute("DELETE FROM owners WHERE token = ?", (self._owner.token,))
            self._db.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- runs ------------------------------------------------------------------------------------

    def create(
        self,
        run_id: str,
        guide: str,
        fingerprint: str = "",
        *,
        parent: str | None = None,
        fork_step: str | None = None,
    ) -> RunInfo:
        """Enter a new run, which has no events yet.

        Raises:
            InvalidRequest: there is a run of this id.
            LogFull: the disk is full.
        """
        info = RunInfo(run_id, guide, fingerprint, self._now(), parent, fork_step)
        with self._transaction() as db:
            self._insert_run(db, info)
        return info

    def _insert_run(self, db: sqlite3.Connection, info: RunInfo) -> None:
        row = (
            info.run_id,
            info.guide,
            info.fingerprint,
            info.created,
            info.parent,
            info.fork_step,
        )
        if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (info.run_id,)).fetchone():
            raise InvalidRequest(
                f"There is a run {info.run_id!r} already.",
                remedy="Take another id, or resume that run.",
            )
        db.execute(f"INSERT INTO runs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)

    def run(self, run_id: str) -> RunInfo:
        """Return one run.

        Raises:
            InvalidRequest: there is no such run.
        """
        with self._lock, translated(self.path):
            query = f"SELECT {_COLUMNS} FROM runs WHERE run_id = ?"
            row = self._db.execute(query, (run_id,)).fetchone()
        if row is None:
            raise _unknown(run_id)
        return RunInfo(*row)

    def runs(self) -> list[RunInfo]:
        """All runs, oldest first."""
        with self._lock, translated(self.path):
            query = f"SELECT {_COLUMNS} FROM runs ORDER BY rowid"
            return [RunInfo(*row) for row in self._db.execute(query)]

    # -- events ----------------------------------------------------------------------------------

    def append(
        self,
        run_id: str,
        kind: str,
        step: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """Append one event in one transaction and return it with its index and time.

        Another process may append ``gate_answered`` to a run that is not its own; whoever drives
        the run reads it with ``events(run_id, start)``, in order of the index.

        Raises:
            InvalidRequest: there is no such run, or the data is not JSON.
            PayloadTooLarge: the data is larger than ``max_bytes``.
            RunBusy: another process owns the run.
            LogFull: the disk is full. Nothing was appended; the run can be resumed.
        """
        text = encode(kind, data, self._max_bytes)
        with self._transaction() as db:
            if kind != "gate_answered":
                self._check_owner(db, run_id)
            now = self._now()
            insert = (
                "INSERT INTO events (run_id, idx, time, kind, step, data) SELECT run_id, (SELECT "
                "COALESCE(MAX(idx) + 1, 0) FROM events WHERE run_id = ?1), ?2, ?3, ?4, ?5 FROM "
                "runs WHERE run_id = ?1 RETURNING idx"
            )
            row = db.execute(insert, (run_id, now, kind, step, text)).fetchone()
            if row is None:
                raise _unknown(run_id)
        return Event(row[0], now, kind, step, json.loads(text))

    def events(self, run_id: str, start: int = 0) -> list[Event]:
        """The events of a run from this index on, in order.

        Raises:
            InvalidRequest: there is no such run.
        """
        self.run(run_id)
        with self._lock, translated(self.path):
            query = (
                "SELECT idx, time, kind, step, data FROM events "
                "WHERE run_id = ? AND idx >= ? ORDER BY idx"
            )
            rows = self._db.execute(query, (run_id, start)).fetchall()
        return [
            Event(index, time, kind, step, json.loads(data))
            for index, time, kind, step, data in rows
        ]

    def _now(self) -> str:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    # -- ownership -------------------------------------------------------------------------------

    @contextmanager
    def own(self, run_id: str, *, force: bool = False) -> Iterator[None]:
        """Hold a run while driving it; see ``claim``."""
        self.claim(run_id, force=force)
        try:
            yield
        finally:
            self.release(run_id)

    def claim(self, run_id: str, *, force: bool = False) -> None:
        """Become the one who drives this run. An owner whose process is dead is replaced.

        Args:
            force: take the run over even where it cannot be told whether its owner lives.

        Raises:
            RunBusy: another process, or another ``RunLog`` of this one, drives it.
            InvalidRequest: there is no such run.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone() is None:
                raise _unknown(run_id)
            self._check_owner(db, run_id, force=force)
            row = (run_id, *self._owner.row(), self._now())
            db.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def release(self, run_id: str) -> None:
        """Give the run up, so that another process may resume it. Not owning it is fine."""
        with self._transaction() as db:
            row = (run_id, self._owner.token)
            db.execute("DELETE FROM owners WHERE run_id = ? AND token = ?", row)

    def owner(self, run_id: str) -> Owner | None:
        """Who drives this run, dead or alive; None when nobody has claimed it."""
        with self._lock, translated(self.path):
            return self._read_owner(self._db, run_id)

    def _read_owner(self, db: sqlite3.Connection, run_id: str) -> Owner | None:
        query = "SELECT token, pid, started, boot, namespace, host, since FROM owners"
        row = db.execute(f"{query} WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else Owner(*row)

    def _check_owner(self, db: sqlite3.Connection, run_id: str, *, force: bool = False) -> None:
        owner = self._read_owner(db, run_id)
        if owner is None or owner.token == self._owner.token:
            return
        found = self._alive(owner)
        if found == "dead" or (force and found == "unknown"):
            return
        raise RunBusy(run_id, owner, found)

    # -- forks -----------------------------------------------------------------------------------

    def fork(
        self,
        run_id: str,
        step: str,
        result: Any,
        *,
        new_run_id: str,
        edges: Mapping[str, str] | None = None,
    ) -> RunInfo:
        """Make a new run that is this one up to the end of a step, which ended differently.

        The new run is resumed like one whose process died right after the step had finished.

        Args:
            result: the step's result in the new run.
            edges: its decisions; those it made itself when None.

        Raises:
            InvalidRequest: no such run, the step has not finished in it, or it has failed and
                ``edges`` is not given; or there is a run ``new_run_id``.
        """
        old = self.run(run_id)
        events = forked_events(self.events(run_id), Fork(run_id, step, result, edges), self._now())
        encoded = [
            (e.index, e.time, e.kind, e.step, encode(e.kind, e.data, self._max_bytes))
            for e in events
        ]
        info = RunInfo(new_run_id, old.guide, old.fingerprint, self._now(), run_id, step)
        with self._transaction() as db:
            self._insert_run(db, info)
            insert = "INSERT INTO events (run_id, idx, time, kind, step, data) VALUES (?,?,?,?,?,?)"
            db.executemany(insert, ((new_run_id, *row) for row in encoded))
        return info


def _unknown(run_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"There is no run {run_id!r} in the log.", remedy="List the runs: agentrt guide runs."
    )
