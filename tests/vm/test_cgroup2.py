"""Cgroup v2 does here what the controller relies on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading

import pytest

from agentrt.resources.pressure import (
    PressureEvent,
    Stall,
    watch_memory_events,
    watch_pressure,
)
from agentrt.resources.watch import Watcher
from tests.vm.conftest import WAIT, Group, until

MB = 1 << 20


def test_every_controller_is_there(group: Group):
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= set(
        group.read("cgroup.controllers").split()
    )


def test_memory_max_kills_and_says_so(group: Group):
    tool = group.child("tool")
    tool.write("memory.max", 32 * MB)
    with tool.allocator(64 * MB) as process:
        assert process.wait(WAIT) == -9
    assert tool.stat("memory.events")["oom_kill"] == 1
    assert int(tool.read("memory.peak")) <= 32 * MB


@pytest.mark.parametrize("grouped", [0, 1])
def test_oom_group(group: Group, grouped: int):
    tool = group.child("tool")
    tool.write("memory.max", 48 * MB)
    tool.write("memory.oom.group", grouped)
    with tool.start("/bin/sleep", "600") as bystander, tool.allocator(96 * MB) as process:
        assert process.wait(WAIT) == -9
        if grouped:
            assert bystander.wait(WAIT) == -9
            assert tool.stat("memory.events")["oom_group_kill"] == 1
        else:
            assert bystander.poll() is None


def test_memory_high_slows_and_stalls_show(group: Group):
    tool = group.child("tool")
    tool.write("memory.high", 16 * MB)
    tool.write("memory.max", 128 * MB)
    watcher, stalled, passed = Watcher(), threading.Event(), threading.Event()
    events: list[PressureEvent] = []

    def memory_event(event: PressureEvent) -> None:
        events.append(event)
        passed.set()

    psi = watch_pressure(
        watcher, tool.path / "memory.pressure", lambda event: stalled.set(), Stall(0.02, 0.5)
    )
    counters = watch_memory_events(watcher, tool.path / "memory.events", memory_event)
    assert (psi.backend, psi.window, psi.reason) == ("trigger", 0.5, "")
    with tool.allocator(64 * MB) as process:
        assert stalled.wait(WAIT)
        assert passed.wait(WAIT)
        assert events[0].grew["high"] > 0
        assert int(tool.read("memory.current")) < 64 * MB
        tool.write("memory.high", "max")
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
    psi.close()
    counters.close()
    watcher.close()


def test_peak_is_reset_for_one_reader(group: Group):
    tool = group.child("tool")
    with tool.allocator(48 * MB) as process:
        assert process.stdout is not None
        process.stdout.readline()
    fd = os.open(tool.path / "memory.peak", os.O_RDWR)
    assert int(os.pread(fd, 64, 0)) > 48 * MB
    os.write(fd, b"reset")
    assert int(os.pread(fd, 64, 0)) < 48 * MB
    os.close(fd)
    assert int(tool.read("memory.peak")) > 48 * MB


def test_reclaim_gives_page_cache_back(group: Group):
    tool = group.child("tool")
    with tool.start("/bin/sh", "-c", "cat /usr/bin/qemu-system-x86_64 | wc -c") as process:
        process.wait(WAIT)
    before = int(tool.read("memory.current"))
    # EAGAIN says that less than asked for was found.
    with contextlib.suppress(BlockingIOError):
        tool.write("memory.reclaim", "64M")
    assert int(tool.read("memory.current")) < max(before, 1)


def test_freeze_stops_and_kill_ends_the_frozen(group: Group):
    tool = group.child("tool")
    with tool.hog() as process:
        until(lambda: tool.cpu_seconds() > 0.1)
        tool.write("cgroup.freeze", 1)
        until(lambda: tool.stat("cgroup.events")["frozen"] == 1)
        frozen_at = tool.cpu_seconds()
        threading.Event().wait(0.5)
        assert tool.cpu_seconds() == frozen_at
        tool.write("cgroup.kill", 1)
        assert process.wait(WAIT) == -9
    until(lambda: tool.stat("cgroup.events")["populated"] == 0)


def test_pids_max_stops_a_fork_bomb(group: Group):
    tool = group.child("tool")
    tool.write("pids.max", 8)
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 600 & done 2>/dev/null; wait"
    with tool.start("/bin/sh", "-c", script) as process:
        until(lambda: tool.stat("pids.events")["max"] > 0)
        assert int(tool.read("pids.current")) <= 8
        tool.write("cgroup.kill", 1)
        process.wait(WAIT)


def test_a_child_is_born_into_a_group(group: Group):
    """clone3 with CLONE_INTO_CGROUP: no moment outside."""
    tool = group.child("tool")
    fd = os.open(tool.path, os.O_RDONLY | os.O_DIRECTORY)
    reader, writer = os.pipe()
    into_cgroup, sigchld = 0x200000000, 17
    arguments = ctypes.create_string_buffer(
        struct.pack("=11Q", into_cgroup, 0, 0, 0, sigchld, 0, 0, 0, 0, 0, fd)
    )
    pid = ctypes.CDLL(None, use_errno=True).syscall(435, arguments, 88)
    if pid == 0:
        with open("/proc/self/cgroup") as file:
            os.write(writer, file.read().encode())
        os._exit(0)
    assert pid > 0
    os.waitpid(pid, 0)
    assert os.read(reader, 256).decode() == f"0::/{tool.path.relative_to('/sys/fs/cgroup')}\n"
    for open_fd in (fd, reader, writer):
        os.close(open_fd)


def test_no_dying_groups_pile_up(group: Group):
    """Groups of many short tool calls are gone once removed."""
    for number in range(40):
        tool = group.child(f"tool-{number}")
        with tool.start("/bin/true") as process:
            process.wait(WAIT)
        tool.remove()
    until(lambda: group.stat("cgroup.stat")["nr_dying_descendants"] <= 10)
