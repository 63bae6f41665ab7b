"""What the tests in the guest share: cgroups with every controller, hogs, and kept measurements.

They run as root, alone on a machine that is thrown away; ``scripts/vm-test`` starts them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agentrt.resources.cgroup import CgroupFiles

ROOT = Path("/sys/fs/cgroup")
WAIT = 60.0

# Memory that is really touched, in steps; then it stays until standard input is closed.
ALLOCATE = """
import sys, time
kept, step, total, pause = [], 1 << 20, int(sys.argv[1]), float(sys.argv[2])
while len(kept) * step < total:
    kept.append(bytearray(b"x") * step)
    time.sleep(pause)
print("done", flush=True)
sys.stdin.read()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here may run on a person's machine by accident."""
    assert os.environ.get("AGENTRT_IN_VM"), "tests/vm runs in the guest: scripts/vm-test"


class Process(subprocess.Popen[str]):
    """A process that does not outlive its ``with``, however the test ends."""

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


class Group:
    """A cgroup made for one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        CgroupFiles().make(path)

    @property
    def id(self) -> int:
        return self.path.stat().st_ino

    def child(self, name: str, *, inner: bool = False) -> Group:
        group = Group(self.path / name)
        if inner:
            group.delegate()
        return group

    def delegate(self) -> None:
        self.write("cgroup.subtree_control", "+cpu +memory +pids")

    def read(self, file: str) -> str:
        return (self.path / file).read_text().strip()

    def write(self, file: str, value: object) -> None:
        (self.path / file).write_text(str(value))

    def stat(self, file: str) -> dict[str, int]:
        pairs = (line.split() for line in self.read(file).splitlines())
        return {name: int(value) for name, value in pairs}

    def start(self, *argv: str) -> Process:
        """A process whose first own instruction is already in the group."""
        script = f'echo 0 > "{self.path}/cgroup.procs" && exec "$@"'
        return Process(
            ["/bin/sh", "-c", script, "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hog(self, cpu: int | None = None) -> Process:
        """A process that computes for ever."""
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        return self.start(*pinned, "/bin/sh", "-c", "while :; do :; done")

    def allocator(self, size: int, pause: float = 0.0) -> Process:
        """A process that touches ``size`` bytes a megabyte at a time and then says ``done``."""
        return self.start(sys.executable, "-c", ALLOCATE, str(size), str(pause))

    def cpu_seconds(self) -> float:
        return self.stat("cpu.stat")["usage_usec"] / 1e6

    def remove(self) -> None:
        files = CgroupFiles()
        files.write(self.path / "cgroup.freeze", "0")
        files.write(self.path / "cgroup.kill", "1")
        until(lambda: files.remove(self.path))


def until(wanted: Callable[[], bool], seconds: float = WAIT) -> None:
    """Wait for something that must become true."""
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def shares(groups: Sequence[Group], seconds: float) -> list[float]:
    """CPU seconds per second of each group over an interval."""
    begun = time.monotonic()
    before = [group.cpu_seconds() for group in groups]
    time.sleep(seconds)
    after = [group.cpu_seconds() for group in groups]
    took = time.monotonic() - begun
    return [(b - a) / took for a, b in zip(before, after, strict=True)]


def middle_shares(groups: Sequence[Group], seconds: float) -> list[float]:
    """Of three intervals, the middle share of each group: the machine has work of its own too."""
    runs = [shares(groups, seconds) for _ in range(3)]
    return [statistics.median(of_group) for of_group in zip(*runs, strict=True)]


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A fresh top-level cgroup that hands its controllers down."""
    name = "".join(c for c in request.node.name if c.isalnum() or c == "_")
    made = Group(ROOT / f"test-{name}"[:60])
    made.delegate()
    yield made
    made.remove()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep numbers of this test in the result directory, for whoever reads the run."""
    out = os.environ.get("AGENTRT_VM_RESULTS")

    def keep(**values: object) -> None:
        if out is not None:
            with open(Path(out) / "measured", "a") as stream:
                stream.write(json.dumps({"test": request.node.name, **values}) + "\n")

    return keep
