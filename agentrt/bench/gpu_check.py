"""The GPU check from its start to its table: tests, rows by a worker, results kept as they come."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agentrt.bench.gpu_children import Worker, run_tests
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
TEST_PATHS = (
    "tests/gpu",
    "tests/engine/triton",
    "tests/engine/test_device.py",
    "tests/engine/test_device_equivalence.py",
    "tests/engine/test_preempt.py",
)
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
        self._worker: Worker | None = None
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
        self.results["tests"] = found = run_tests(self._options.root, paths, left)
        self._save()
        self._tell(f"tests: {found['passed']} passed, {found['failed']} failed, {found['note']}")

    # --- rows

    def _measure(self) -> None:
        """Have workers measure what fits; one that broke is followed by another."""
        while self._options.rows and (self._next() is not None or "key" not in self.results):
            self._worker = worker = Worker(
                self._options.root, self._options.profiles, dry=self._options.dry
            )
            try:
                self._drive(worker)
            finally:
                worker.close()

    def _next(self) -> Row | None:
        scale = DRY_SCALE if self._options.dry else 1.0
        return next(iter(self._plan.fitting(self._clock(), scale)), None)

    def _drive(self, worker: Worker) -> None:
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
