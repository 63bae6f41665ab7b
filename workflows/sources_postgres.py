"""PostgreSQL, in a read-only transaction with a statement timeout; the driver is optional."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentrt.workflows.queries_model import BoundQuery, Control, QueryResult
from agentrt.workflows.queries_sql import to_format_style
from agentrt.workflows.sources_common import failed, limited, stopped, unique_names

__all__ = ["ask_postgres"]

_POLL = 0.05
_CHUNK = 500


def ask_postgres(
    bound: BoundQuery,
    control: Control,
    *,
    environment: Mapping[str, str] = os.environ,
    driver: Any = None,
) -> QueryResult:
    """Answer a query from PostgreSQL.

    ``environment`` holds the address that the source's ``dsn_env`` names. ``driver`` is the module
    psycopg, unless another with its ``connect`` and ``Error`` is given.

    Raises:
        QueryTimeout: the limit passed, or it was cancelled; the server was told to stop.
        QueryFailed: there is no driver or no server, or it refused the statement.
    """
    module = driver or _driver(bound)
    stop = control.deadline()
    seconds = max(1, round(control.limit))
    address = _dsn(bound, environment)
    try:
        opened = module.connect(address, connect_timeout=seconds, autocommit=False)
        with contextlib.closing(opened) as database, _guard(database, module.Error, stop):
            result = _ask(bound, control, database, stop)
    except module.Error as error:
        if stop() or type(error).__name__ == "QueryCanceled":
            raise stopped(bound, control) from error
        remedy = "Check the source's dsn, and the SQL."
        raise failed(bound, f"PostgreSQL: {error}", remedy) from error
    if stop():
        raise stopped(bound, control)
    return result


def _ask(
    bound: BoundQuery, control: Control, database: Any, stop: Callable[[], bool]
) -> QueryResult:
    with database.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(control.limit * 1000))}")
    # A cursor with a name stays on the server: rows beyond the limit never leave it.
    with database.cursor(name="agentrt") as cursor:
        cursor.execute(to_format_style(bound.statement), dict(bound.values))
        rows = list(itertools.islice(_fetch(cursor, stop), bound.query.row_limit + 1))
        names = unique_names(str(column[0]) for column in cursor.description or ())
    database.rollback()
    return limited(bound, names, rows)


def _fetch(cursor: Any, stop: Callable[[], bool]) -> Iterator[Any]:
    while not stop() and (rows := cursor.fetchmany(_CHUNK)):
        yield from rows


@contextlib.contextmanager
def _guard(database: Any, expected: type[Exception], stop: Callable[[], bool]) -> Iterator[None]:
    """Tell the server to cancel what runs once ``stop()`` is true, from a thread of its own."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL):
            if stop():
                with contextlib.suppress(expected):
                    database.cancel()
                return

    thread = threading.Thread(target=watch, name="agentrt-postgres-guard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _driver(bound: BoundQuery) -> Any:
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        remedy = "Install it: pip install 'psycopg[binary]'."
        raise failed(bound, "PostgreSQL sources need the driver psycopg", remedy) from error


def _dsn(bound: BoundQuery, environment: Mapping[str, str]) -> str:
    settings = bound.source.settings
    if "dsn_env" not in settings:
        return str(settings["dsn"])
    name = str(settings["dsn_env"])
    if name not in environment:
        raise failed(bound, f"the variable {name} is not set", f"Put the database's dsn in {name}.")
    return environment[name]
