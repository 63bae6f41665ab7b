"""Log files: lines that a pattern matches within a window of time, read in a process of their own.

A regular expression of the standard library cannot be interrupted while it backtracks. So it runs
in a child, which is killed when its time is over; whatever the pattern and the lines are, the
query ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrt.workflows.queries_model import BoundQuery, Control, QueryResult
from agentrt.workflows.sources_common import failed, limited, source_file, stopped, unique_names

__all__ = ["ask_log"]

_SCANNER = Path(__file__).with_name("sources_log_scan.py")
_MOST_BYTES = 256 * 2**20
_LONGEST_LINE = 64 * 2**10
_POLL = 0.05


def ask_log(bound: BoundQuery, control: Control) -> QueryResult:
    """Answer a query from a log file: named groups become columns, beside ``line`` and ``ts``.

    Raises:
        QueryTimeout: the limit passed, or it was cancelled; the scan was killed.
        QueryFailed: the file cannot be read.
    """
    job = {
        "path": str(source_file(bound)),
        "encoding": bound.source.settings.get("encoding", "utf-8"),
        "pattern": bound.statement,
        "plain": bound.query.kind == "contains",
        "ignore_case": bound.query.ignore_case,
        "start": bound.start,
        "end": bound.end,
        "rows": bound.query.row_limit,
        "bytes": _MOST_BYTES,
        "line_bytes": _LONGEST_LINE,
    }
    reply = _scan(bound, control, job)
    if "error" in reply:
        remedy = f"Check {job['path']} and the pattern."
        raise failed(bound, reply["error"], remedy)
    result = limited(bound, unique_names(reply["columns"]), reply["rows"])
    return QueryResult(result.columns, result.rows, result.truncated or bool(reply["truncated"]))


def _scan(bound: BoundQuery, control: Control, job: Mapping[str, Any]) -> dict[str, Any]:
    stop = control.deadline()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SCANNER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.defpath},
    ) as child:
        try:
            out, trouble = _talk(child, json.dumps(job).encode(), stop)
        finally:
            child.kill()
    if out is None:
        raise stopped(bound, control)
    try:
        reply: dict[str, Any] = json.loads(out)
    except ValueError as error:
        said = trouble.decode("utf-8", "replace").strip().splitlines()[-1:]
        what = f"the scan of the log ended with {child.returncode}: {''.join(said)}"
        raise failed(bound, what, "Ask for fewer lines.") from error
    return reply


def _talk(child: subprocess.Popen[bytes], job: bytes, stop: Any) -> tuple[bytes | None, bytes]:
    """Return what the child wrote, or None where it had to be stopped."""
    given: bytes | None = job
    while not stop():
        try:
            return child.communicate(given, timeout=_POLL)
        except subprocess.TimeoutExpired:
            given = None
    return None, b""
