"""Reads a log file for one query; run as a script, so that it can be killed.

It reads one job as JSON from standard input and writes one reply as JSON to standard output. It
needs nothing but the standard library, since it starts without site packages.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

__all__ = ["main", "scan"]

_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?: ?(?:Z|[+-]\d\d:?\d\d))?"
)
_TIME_WITHIN = 200


def scan(job: dict[str, Any]) -> dict[str, Any]:
    """Return ``columns``, ``rows`` and ``truncated`` of the lines that fit the job.

    A line without a time of its own, such as one of a stack trace, has that of the line before.
    Reading stops at ``rows`` rows or ``bytes`` bytes; what is longer than ``line_bytes`` is cut.

    Raises:
        OSError: the file cannot be read.
        ValueError: the pattern is no regular expression, or a time is none.
    """
    match, columns = _matcher(job)
    low, high = _moment(job["start"]), _moment(job["end"])
    rows: list[list[Any]] = []
    last: float | None = None
    with open(job["path"], "rb") as file:
        lines = _Lines(file, job["bytes"], job["line_bytes"])
        for number, raw in lines:
            line = raw.decode(job["encoding"], "replace").rstrip("\r\n")
            found = _TIME.search(line[:_TIME_WITHIN])
            last = _moment(found[0]) if found else last
            cells = match(line) if _within(last, low, high) else None
            if cells is None:
                continue
            if len(rows) == job["rows"]:
                return {"columns": columns, "rows": rows, "truncated": True}
            rows.append([number, _iso(last), *cells])
    return {"columns": columns, "rows": rows, "truncated": lines.stopped}


class _Lines:
    """The lines of a file, numbered from 1, each cut at ``longest``, ``most`` bytes in all."""

    def __init__(self, file: BinaryIO, most: int, longest: int) -> None:
        self.file, self.most, self.longest = file, most, longest
        self.stopped = False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        taken = number = 0
        while line := self.file.readline(self.longest):
            number += 1
            taken += len(line)
            if taken > self.most:
                self.stopped = True
                return
            yield number, line
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = self.file.readline(self.longest)
                taken += len(rest)


def _matcher(job: dict[str, Any]) -> tuple[Callable[[str], list[Any] | None], list[str]]:
    """Return what gives the cells of a fitting line, and the names of the columns."""
    if job["plain"]:
        return _plain_matcher(job["pattern"], job["ignore_case"]), ["line", "ts", "text"]
    pattern = re.compile(job["pattern"], re.IGNORECASE if job["ignore_case"] else 0)
    names = list(pattern.groupindex)

    def match(line: str) -> list[Any] | None:
        found = pattern.search(line)
        if found is None:
            return None
        return [found[name] for name in names] or [line]

    return match, ["line", "ts", *(names or ["text"])]


def _plain_matcher(wanted: str, ignore_case: bool) -> Callable[[str], list[Any] | None]:
    if not ignore_case:
        return lambda line: [line] if wanted in line else None
    folded = wanted.casefold()
    return lambda line: [line] if folded in line.casefold() else None


def _within(moment: float | None, low: float | None, high: float | None) -> bool:
    if moment is None:
        return low is None and high is None
    return (low is None or moment >= low) and (high is None or moment <= high)


def _moment(text: str) -> float | None:
    """Return seconds since 1970 of ISO-8601 text, or None for none or one that is no date."""
    if not text:
        return None
    try:
        found = datetime.datetime.fromisoformat(text.replace(",", ".").replace(" +", "+"))
    except ValueError:
        return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return found.timestamp()


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    found = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return found.replace(tzinfo=None).isoformat() + "Z"


def main() -> None:
    """Answer the job on standard input."""
    try:
        reply = scan(json.load(sys.stdin))
    except (OSError, ValueError, LookupError, RecursionError, re.error) as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
