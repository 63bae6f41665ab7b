"""The processes of a GPU check: the one that measures, and the tests."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["Worker", "run_tests"]


class Worker:
    """The measuring process: a JSON object a line each way. ``why`` says why none came."""

    def __init__(self, root: Path, profiles: Path, *, dry: bool) -> None:
        self.why = ""
        command = [sys.executable, "-m", "agentrt.bench.gpu_worker", str(profiles)]
        self._process = subprocess.Popen(
            [*command, *(["--dry-run"] if dry else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=_environment(root),
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


def run_tests(root: Path, paths: Sequence[str], seconds: float) -> dict[str, Any]:
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
