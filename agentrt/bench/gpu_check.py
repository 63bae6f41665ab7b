"""The GPU check from its start to its table: tests, rows by a worker, results kept as they come."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from agentrt.bench.gpu_plan import Plan, Row, failures, finish, keep
from agentrt.bench.gpu_table import plain
from agentrt.bench.machine import machine_facts
from agentrt.errors import BackendUnavailable

__all__ = ["Check", "Options", "source_digest"]

Tell: TypeAlias = Callable[[str], None]

SLACK = 8.0
"""Seconds kept for writing and ending."""
TESTS = 150.0
"""Seconds that the tests may take."""
TEST_PATHS = ("tests/gpu", "tests/engine/triton", "tests/engine/test_device.py")
"""What has tests for CUDA; in a dry run the first, the others belong to every run of the suite."""
START = 120.0
"""Seconds for a worker to say hello, and again to measure rates."""
DRY_SCALE = 0.1
"""Of a row's seconds, at tiny sizes."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for.

    Args:
        root: the working tree.
        out: the results file.
        rows: what to measure.
        budget: seconds for all of it.
        dry: tiny sizes on the CPU.
        tests: run the tests that have a part on CUDA first.
    """

    root: Path
    out: Path
    rows: Sequence[Row]
    budget: float
    dry: bool = False
    tests: bool = True

    @property
    def profiles(self) -> Path:
        """Where kernel tables of rows that fall short go."""
        return self.out.with_suffix(".profiles")

    @property
    def state(self) -> Path:
        """Where it is kept how far a run came."""
        return self.out.with_suffix(".state.json")


def source_digest(root: Path) -> str:
    """Return a name for the sources that are measured: results of others do not count."""
    digest = hashlib.sha256()
    files = [*(root / "engine").rglob("*"), *(root / "agentrt").rglob("*.py")]
    for file in sorted(set(files)):
        if file.suffix in (".py", ".cpp", ".h"):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Check:
    """One run. ``results`` is what the file holds.

    Args:
        options: what is asked for.
        tell: says what is going on.
        clock: seconds.
    """

    def __init__(
        self, options: Options, tell: Tell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._tell = tell
        self._clock = clock
        self._plan = Plan(options.rows, {}, clock() + options.budget - SLACK)
        self._worker: _Worker | None = None
        self.results: dict[str, Any] = {
            "command": "scripts/gpu-check",
            "dry": options.dry,
            "machine": machine_facts(),
            "commit": _commit(options.root),
            "sources": source_digest(options.root),
        }

    def run(self) -> int:
        """Do all of it; returns the exit status: 1 if something failed, 2 if rows are left."""
        try:
            if self._options.tests:
                self._run_tests()
            self._measure()
        except KeyboardInterrupt:
            self._tell("Stopped. The rows so far are kept; the same command goes on.")
            return 130
        finally:
            if self._worker is not None:
                self._worker.close()
            self._save()
        tests = self.results.get("tests") or {}
        if tests.get("failed") or failures(self._plan.entries.values()):
            return 1
        return 2 if self._plan.left() else 0

    def table(self) -> str:
        """Return the results for a terminal."""
        return plain(self.results)

    # --- tests

    def _run_tests(self) -> None:
        self._tell("tests …")
        left = min(TESTS, self._plan.until - self._clock())
        paths = TEST_PATHS[:1] if self._options.dry else TEST_PATHS
        self.results["tests"] = found = _tests(self._options.root, paths, left)
        self._save()
        self._tell(f"tests: {found['passed']} passed, {found['failed']} failed, {found['note']}")

    # --- rows

    def _measure(self) -> None:
        """Have workers measure what fits; one that broke is followed by another."""
        while self._options.rows and (self._next() is not None or "key" not in self.results):
            self._worker = worker = _Worker(self._options)
            try:
                self._drive(worker)
            finally:
                worker.close()

    def _next(self) -> Row | None:
        scale = DRY_SCALE if self._options.dry else 1.0
        return next(iter(self._plan.fitting(self._clock(), scale)), None)

    def _drive(self, worker: _Worker) -> None:
        """Ask a worker for row after row, until none fits or it is of no more use."""
        for what in ("hello", "rates"):
            told = worker.receive(min(START, self._left()))
            if told is None:
                raise BackendUnavailable(
                    f"The measuring process did not say {what}: {worker.why}.",
                    remedy="See what it printed; without a GPU, use --dry-run.",
                )
            if what == "hello":
                self._take_facts(told[what])
            else:
                self.results["rates"] = told[what]
        while (row := self._next()) is not None:
            self._tell(f"{row.name}: {row.title} …")
            worker.send({"row": row.name})
            answer = worker.receive(min(max(60.0, 4 * row.seconds), self._left()))
            if answer is not None:
                self._note(answer["row"])
            elif self._left() > 0:
                self._note(finish(row, worker.why, failed=True))
            if answer is None or answer["broken"]:
                return

    def _left(self) -> float:
        return max(0.0, self._plan.until - self._clock())

    def _take_facts(self, facts: dict[str, Any]) -> None:
        """Note what the worker runs on, and take over the rows of an earlier run on the same."""
        if "key" in self.results:
            return
        key = {"device": facts, "sources": self.results["sources"], "dry": self._options.dry}
        self.results |= {"key": key, **facts}
        for entry in keep(_read(self._options.state), key):
            self._plan.entries.setdefault(entry["name"], entry)
        kept = len(self._plan.entries)
        if kept:
            self._tell(f"{kept} rows are there already, of the same machine and sources")

    def _note(self, entry: dict[str, Any]) -> None:
        self._plan.entries[entry["name"]] = entry
        value = (
            entry["note"] if entry["value"] is None else f"{entry['value']:,.4g} {entry['unit']}"
        )
        self._tell(f"{entry['name']}: {value}")
        self._save()

    def _save(self) -> None:
        """Write results and state; each is whole at any time."""
        self.results["rows"] = self._plan.ordered()
        self.results["left"] = [row.name for row in self._plan.left()]
        text = json.dumps(self.results, indent=1) + "\n"
        self._options.out.parent.mkdir(parents=True, exist_ok=True)
        for file in (self._options.out, self._options.state):
            part = file.with_name(file.name + ".part")
            part.write_text(text, encoding="utf-8")
            part.replace(file)


class _Worker:
    """The measuring process: a JSON object a line each way. ``why`` says why none came."""

    def __init__(self, options: Options) -> None:
        self.why = ""
        command = [sys.executable, "-m", "agentrt.bench.gpu_worker", str(options.profiles)]
        self._process = subprocess.Popen(
            [*command, *(["--dry-run"] if options.dry else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=options.root,
            env=_environment(options.root),
            start_new_session=True,  # Ctrl-C is ours: what is measured so far is kept first
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def send(self, about: dict[str, Any]) -> None:
        """Send a message; one to a process that is gone is dropped."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(about) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Wait for a message; None if the process ended or none came in time."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.why = f"it did not answer within {seconds:.0f} s"
            return None
        if line is None:
            self.why = f"the measuring process ended with status {self._process.wait()}"
            return None
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        """End the process. Idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _tests(root: Path, paths: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run tests; return how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/gpu",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-c", "tests/gpu/alone.ini", "--rootdir", str(root), f"--junitxml={report}"]
        try:
            done = subprocess.run(
                command,
                cwd=root,
                env=_environment(root),
                stdout=sys.stderr,
                timeout=seconds,
                check=False,
            )
            note = "" if done.returncode in (0, 1, 5) else f"pytest ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            note = f"not over within {seconds:.0f} s"
        return _counts(report, note)


def _environment(root: Path) -> dict[str, str]:
    """Return ours, with the working tree before all else that is imported."""
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _counts(report: Path, note: str) -> dict[str, Any]:
    if not report.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0, "note": note or "no report was written"}
    suite = ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    ran = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = ran["failures"] + ran["errors"] + (1 if note else 0)
    passed = ran["tests"] - ran["failures"] - ran["errors"] - ran["skipped"]
    return {
        "passed": passed,
        "failed": failed,
        "skipped": ran["skipped"],
        "note": note or f"{ran['skipped']} skipped",
    }


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.strip()
