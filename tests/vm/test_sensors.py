"""Sensors and egress on a kernel with cgroup v2, where memory and processes share one tree."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from agentrt.resources.egress import Egress, parse_allow
from agentrt.resources.sensors import Sensor, SensorEvent, open_sensors
from agentrt.resources.usage import KernelUsage
from agentrt.resources.watch import Watcher
from tests.vm.conftest import WAIT, Group, until

MB = 1 << 20


@pytest.fixture(scope="module")
def everything() -> Iterator[tuple[Sensor, list[SensorEvent]]]:
    """One sensor for all tests: loading it takes seconds here."""
    watcher, events = Watcher(), list[SensorEvent]()
    sensor = open_sensors(watcher, events.append, backend="bpf")
    yield sensor, events
    sensor.close()
    watcher.close()


@pytest.fixture
def sensor(everything: tuple[Sensor, list[SensorEvent]], group: Group) -> Iterator[Sensor]:
    sensor, _ = everything
    root = group.id
    sensor.add_root(group.path)
    yield sensor
    sensor.remove_root(root)


@pytest.fixture
def events(everything: tuple[Sensor, list[SensorEvent]]) -> list[SensorEvent]:
    everything[1].clear()
    return everything[1]


def test_the_programs_load_with_nothing_unseen(sensor: Sensor):
    assert sensor.unseen == ()


def test_an_oom_kill_names_the_victim(group: Group, sensor: Sensor, events: list[SensorEvent]):
    tool = group.child("tool")
    tool.write("memory.max", 32 * MB)
    with tool.allocator(64 * MB) as process:
        process.wait(WAIT)
    until(lambda: any(event.kind == "oom" for event in events))
    killed = next(event for event in events if event.kind == "oom")
    assert killed.pid == process.pid
    assert killed.lineage == (tool.id, group.id)


def test_reclaim_is_timed(group: Group, sensor: Sensor, events: list[SensorEvent]):
    tool = group.child("tool")
    tool.write("memory.high", 16 * MB)
    with tool.allocator(40 * MB, 0.01):
        until(lambda: any(e.kind == "reclaim" and e.seconds > 0 for e in events))
    reclaims = [event for event in events if event.kind == "reclaim"]
    assert {event.cgroup_id for event in reclaims} == {tool.id}


def test_memory_is_sampled_in_the_kernel_as_the_files_say(group: Group):
    tool = group.child("tool")
    tool.write("memory.high", 16 * MB)
    with tool.allocator(24 * MB) as process:
        until(lambda: tool.stat("memory.events")["high"] > 0)
        tool.write("cgroup.freeze", 1)
        until(lambda: tool.stat("cgroup.events")["frozen"] == 1)
        usage = KernelUsage()
        found = usage.sample(group.path)
        assert set(found) == {group.id, tool.id}
        sample = found[tool.id]
        assert sample.high == tool.stat("memory.events")["high"]
        assert sample.size == int(tool.read("memory.current"))
        assert sample.oom_kill == 0
        usage.close()
        tool.write("cgroup.kill", 1)
        process.wait(WAIT)


def test_egress(group: Group):
    tool = group.child("tool")
    script = (
        "import socket, sys\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 30)\n"
        "except PermissionError: sys.exit(13)\n"
    )

    def reach(port: int) -> int:
        with tool.start(sys.executable, "-c", script, str(port)) as process:
            return process.wait(WAIT)

    egress = Egress()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        egress.restrict(tool.path)
        assert reach(port) == 13
        egress.restrict(tool.path, [parse_allow(f"127.0.0.1:{port}")])
        assert reach(port) == 0
    egress.close()
