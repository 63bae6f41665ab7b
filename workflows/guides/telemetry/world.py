"""A small made world: tables, log lines and metrics, drawn from one seeded source of chance."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from agentrt.errors import ConfigError

__all__ = ["Cell", "World", "minutes", "stamp"]

Cell: TypeAlias = str | int | float

DATABASE = "telemetry.db"
METRICS = "metrics.json"
SOURCES = "sources.toml"
LOGS = "logs"


def stamp(text: str, after_minutes: float = 0) -> str:
    """Return the moment ``after_minutes`` after an ISO-8601 UTC one, in the same form."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00")) + timedelta(minutes=after_minutes)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def minutes(start: str, count: int) -> Iterator[tuple[int, str]]:
    """Yield ``(minute, moment)`` for so many minutes from ``start`` on."""
    for minute in range(count):
        yield minute, stamp(start, minute)


class World:
    """Collects what a recording holds, then writes it. ``random`` is its only source of chance."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self._columns: dict[str, tuple[str, ...]] = {}
        self._rows: dict[str, list[Sequence[Cell]]] = {}
        self._logs: dict[str, list[str]] = {}
        self._answers: dict[str, list[dict[str, object]]] = {}

    def table(self, name: str, columns: str) -> None:
        """Declare a table; ``columns`` is its SQL column list, such as ``ts text, depth int``."""
        self._columns[name] = tuple(column.strip() for column in columns.split(","))
        self._rows.setdefault(name, [])

    def row(self, name: str, *cells: Cell) -> None:
        """Add a row to a declared table."""
        self._rows[name].append(cells)

    def log(self, name: str, moment: str, **fields: Cell) -> None:
        """Add the line ``MOMENT key=value …`` to ``logs/NAME.log``."""
        rest = " ".join(f"{key}={value}" for key, value in fields.items())
        self._logs.setdefault(name, []).append(f"{moment} {rest}")

    def metric(
        self, query: str, arguments: Mapping[str, str], samples: Iterable[tuple[str, float]]
    ) -> None:
        """Add what a metrics query answers, given these arguments: pairs of moment and value."""
        rows = [[moment, value] for moment, value in samples]
        entry: dict[str, object] = {
            "arguments": dict(arguments),
            "columns": ["ts", "value"],
            "rows": rows,
        }
        self._answers.setdefault(query, []).append(entry)

    def near(self, value: float, spread: float = 0.05) -> float:
        """Return ``value`` give or take a share of it, to three places."""
        return round(value * (1 + self.random.uniform(-spread, spread)), 3)

    def write(self, directory: Path) -> None:
        """Write everything into ``directory``.

        Raises:
            ConfigError: it already holds a recording.
        """
        database = directory / DATABASE
        if database.exists():
            raise ConfigError(
                f"{database} exists already.", remedy="Give an empty directory for the recording."
            )
        (directory / LOGS).mkdir(parents=True, exist_ok=True)
        self._write_tables(database)
        for name, lines in self._logs.items():
            text = "\n".join(sorted(lines)) + "\n"
            (directory / LOGS / f"{name}.log").write_text(text, encoding="utf-8")
        if self._answers:
            document = json.dumps(self._answers, indent=1, sort_keys=True)
            (directory / METRICS).write_text(document + "\n", encoding="utf-8")
        (directory / SOURCES).write_text(self._sources(), encoding="utf-8")

    def _sources(self) -> str:
        """Return where each source of the guide's queries is recorded, as TOML."""
        found = [("telemetry", "sqlite", DATABASE)]
        found += [(name, "log", f"{LOGS}/{name}.log") for name in sorted(self._logs)]
        found += [("metrics", "recorded", METRICS)] if self._answers else []
        tables = [f'[source.{n}]\ntype = "{kind}"\npath = "{path}"\n' for n, kind, path in found]
        return "\n".join(tables)

    def _write_tables(self, database: Path) -> None:
        with closing(sqlite3.connect(database)) as connection, connection:
            for name, columns in self._columns.items():
                # Names are our own literals; SQL cannot bind them.
                connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
                marks = ", ".join("?" for _ in columns)
                connection.executemany(f"INSERT INTO {name} VALUES ({marks})", self._rows[name])
