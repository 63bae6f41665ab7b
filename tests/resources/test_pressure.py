"""PSI triggers and memory events: parsing, the choice of a trigger, and real stalls."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt.resources.pressure import PressureEvent, Stall, parse_pressure, watch_pressure
from agentrt.resources.watch import Watcher

WAIT = 30.0


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def test_parsing():
    text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=1000\n"
    assert parse_pressure(text) == {"some": 2.5, "full": 0.001}
    assert parse_pressure("") == {}


def test_the_text_of_a_trigger():
    assert Stall(0.05, 0.5).trigger(0.5) == b"some 50000 500000\0"
    assert Stall(0.1, 2.0, "full").trigger(2.0) == b"full 100000 2000000\0"


def test_a_missing_file_is_an_error(watcher: Watcher, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        watch_pressure(watcher, tmp_path / "memory.pressure", lambda event: None)


def test_where_no_trigger_can_be_made_it_polls(watcher: Watcher, tmp_path: Path):
    # An ordinary file takes the write, but cannot be polled: epoll refuses it.
    file = tmp_path / "memory.pressure"
    file.write_text("some total=0\nfull total=0\n")
    seen: list[PressureEvent] = []
    fired = threading.Event()

    def sink(event: PressureEvent) -> None:
        seen.append(event)
        fired.set()

    source = watch_pressure(watcher, file, sink, Stall(0.05, 0.5))
    assert source.backend == "poll"
    assert source.reason
    file.write_text("some total=900000\nfull total=1000\n")
    assert fired.wait(WAIT)
    assert (seen[0].some, seen[0].full) == (0.9, 0.001)
    file.unlink()
    source.close()


@pytest.mark.requires_root
def test_a_real_stall_fires_the_trigger(watcher: Watcher, v2_group: Path):
    file = v2_group / "cpu.pressure"
    if not file.exists():
        pytest.skip("the kernel has no PSI")
    fired = threading.Event()
    seen: list[PressureEvent] = []

    def sink(event: PressureEvent) -> None:
        seen.append(event)
        fired.set()

    source = watch_pressure(watcher, file, sink, Stall(0.01, 0.5))
    assert source.backend in ("trigger", "slow-trigger")
    if source.backend == "slow-trigger":
        assert source.window == 2.0
        assert "CAP_SYS_RESOURCE" in source.reason
    hogs = (os.cpu_count() or 1) + 2
    script = f'echo 0 > "{v2_group}/cgroup.procs"; exec sh -c "while :; do :; done"'
    running = [subprocess.Popen(["/bin/sh", "-c", script]) for _ in range(hogs)]
    try:
        assert fired.wait(WAIT)
    finally:
        for process in running:
            process.kill()
            process.wait(WAIT)
    assert seen[0].file == file
    assert seen[0].some > 0
    source.close()
    source.close()
