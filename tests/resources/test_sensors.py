"""Sensors: events of watched cgroups by BPF and by polling, against real processes."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentrt.resources.cgroup import Layout
from agentrt.resources.sensors import Sensor, SensorEvent, open_sensors
from agentrt.resources.sensors_bpf import BpfSensor, Burst, unpack_event
from agentrt.resources.sensors_poll import PollSensor
from agentrt.resources.watch import Watcher

WAIT = 20.0


class Recorder:
    """A sink that remembers, and waits for an event that a test expects."""

    def __init__(self) -> None:
        self.events: list[SensorEvent] = []

    def __call__(self, event: SensorEvent) -> None:
        self.events.append(event)

    def until(self, wanted: Callable[[SensorEvent], bool]) -> SensorEvent:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            for event in list(self.events):
                if wanted(event):
                    return event
            time.sleep(0.005)
        raise AssertionError(f"not among {[(e.kind, e.text) for e in self.events]}")


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


def run_in(group: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script whose shell is in the group before its first command."""
    joined = f'echo 0 > "{group}/cgroup.procs"\n{script}'
    return subprocess.run(
        ["/bin/sh", "-c", joined, "sh", *arguments], timeout=WAIT, check=False, capture_output=True
    )


@pytest.fixture
def bpf(watcher: Watcher, seen: Recorder, v2_group: Path) -> Iterator[Sensor]:
    sensor = open_sensors(watcher, seen, [v2_group], backend="bpf")
    yield sensor
    sensor.close()


@pytest.mark.requires_root
@pytest.mark.requires_bpf
class TestBpf:
    def test_the_life_of_a_process(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        run_in(v2_group, "/bin/true; exit 7")
        executed = seen.until(lambda e: e.kind == "exec" and e.text.endswith("/true"))
        assert executed.cgroup_id == v2_group.stat().st_ino
        assert executed.lineage == (executed.cgroup_id,)
        forked = seen.until(lambda e: e.kind == "fork" and e.pid == executed.pid)
        ended = seen.until(lambda e: e.kind == "exit" and e.pid == executed.pid)
        assert ended.status == 0
        shell = seen.until(lambda e: e.kind == "exit" and e.pid == forked.parent)
        assert os.waitstatus_to_exitcode(shell.status or 0) == 7
        assert forked.time <= executed.time <= ended.time <= time.monotonic()
        assert bpf.statistics().lost == 0
        assert bpf.backend == "bpf"

    def test_a_death_by_signal(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        run_in(v2_group, "kill -9 $$")
        ended = seen.until(lambda e: e.kind == "exit")
        assert os.waitstatus_to_exitcode(ended.status or 0) == -9

    def test_the_lineage_of_a_nested_group(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        inner = v2_group / "program" / "tool-1"
        inner.mkdir(parents=True)
        run_in(inner, "/bin/true")
        executed = seen.until(lambda e: e.kind == "exec")
        chain = (inner, inner.parent, v2_group)
        assert executed.lineage == tuple(path.stat().st_ino for path in chain)

    def test_moves_and_where_from(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        inner = v2_group / "inner"
        inner.mkdir()
        run_in(v2_group, f'echo 0 > "{inner}/cgroup.procs"')
        came = seen.until(lambda e: e.kind == "move" and e.cgroup_id == v2_group.stat().st_ino)
        went = seen.until(lambda e: e.kind == "move" and e.cgroup_id == inner.stat().st_ino)
        assert went.pid == came.pid
        assert went.previous == came.cgroup_id

    def test_other_groups_are_not_reported(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        subprocess.run(["/bin/true"], check=True, timeout=WAIT)
        run_in(v2_group, "/bin/true")
        seen.until(lambda e: e.kind == "exec")
        assert {e.lineage[-1] for e in seen.events} == {v2_group.stat().st_ino}

    def test_a_removed_root_is_silent(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        outer, inner = v2_group / "outer", v2_group / "inner"
        outer.mkdir()
        inner.mkdir()
        bpf.add_root(outer)
        bpf.remove_root(v2_group.stat().st_ino)
        run_in(inner, "/bin/true")
        run_in(outer, "/bin/true")
        seen.until(lambda e: e.kind == "exec")
        assert {e.lineage[-1] for e in seen.events} == {outer.stat().st_ino}

    def test_connect_attempts(self, bpf: Sensor, seen: Recorder, v2_group: Path):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            run_in(v2_group, 'exec bash -c "exec 3<>/dev/tcp/127.0.0.1/$1"', str(port))
        made = seen.until(lambda e: e.kind == "connect")
        assert made.text == f"tcp 127.0.0.1:{port}"
        assert not made.denied

    def test_what_may_wait_is_told_when_asked_or_with_what_may_not(
        self, watcher: Watcher, seen: Recorder, v2_group: Path
    ):
        burst = Burst(size=1 << 20, seconds=60.0)
        sensor = BpfSensor(watcher, seen, burst, lazy=512 << 10)
        try:
            sensor.add_root(v2_group)
            run_in(v2_group, "exit 3")
            assert [e.kind for e in seen.events if e.kind == "exit"] == []
            sensor.drain()
            assert [e.kind for e in seen.events].count("exit") == 1
            run_in(v2_group, "head -c 30000000 /dev/zero | tail -c 25000000 | wc -c")
            seen.until(lambda e: e.kind == "burst")  # its reader was woken
            assert sensor.statistics().lost == 0
        finally:
            sensor.close()

    def test_bursts(self, watcher: Watcher, seen: Recorder, v2_group: Path):
        sensor = BpfSensor(watcher, seen, Burst(size=1 << 20, seconds=60.0))
        sensor.add_root(v2_group)
        run_in(v2_group, "head -c 16000000 /dev/zero | tail -c 16000000 | wc -c")
        burst = seen.until(lambda e: e.kind == "burst")
        assert burst.size >= 1 << 20
        assert burst.cgroup_id == v2_group.stat().st_ino
        sensor.close()

    def test_lost_events_are_counted(self, v2_group: Path):
        # A watcher that is not listening: nothing drains the ring buffer of a megabyte.
        class Deaf(Watcher):
            def add(self, fd: int, mask: int, call: Callable[[], None]) -> None:
                pass

        watcher, seen = Deaf(), Recorder()
        sensor = BpfSensor(watcher, seen, Burst(size=4096, seconds=60.0))
        sensor.add_root(v2_group)
        for _ in range(20):
            if sensor.statistics().lost:
                break
            run_in(v2_group, "head -c 64000000 /dev/zero | tail -c 64000000 | wc -c")
        assert sensor.statistics().lost > 0
        sensor.close()
        watcher.close()

    def test_nothing_stays_open(self, watcher: Watcher, seen: Recorder, v2_group: Path):
        open_sensors(watcher, seen, [v2_group], backend="bpf").close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            sensor = open_sensors(watcher, seen, [v2_group], backend="bpf")
            sensor.close()
            sensor.close()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.requires_root
class TestPoll:
    @pytest.fixture
    def sensor(self, watcher: Watcher, seen: Recorder, v2_group: Path) -> PollSensor:
        sensor = PollSensor(watcher, seen, reason="a test", period=3600.0, burst=8 << 20)
        sensor.add_root(v2_group)
        sensor.poll()
        return sensor

    @pytest.fixture
    def sleeper(self, v2_group: Path) -> Iterator[subprocess.Popen[bytes]]:
        script = f'echo 0 > "{v2_group}/cgroup.procs"; echo in; exec sleep 60'
        with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
            process.kill()

    def test_it_says_what_it_is(self, sensor: PollSensor):
        assert sensor.backend == "poll"
        assert sensor.reason == "a test"
        assert set(sensor.unseen) == {"exec", "reclaim", "connect"}

    def test_a_start_a_move_and_an_end(
        self,
        sensor: PollSensor,
        seen: Recorder,
        sleeper: subprocess.Popen[bytes],
        v2_group: Path,
    ):
        sensor.poll()
        inner = v2_group / "inner"
        inner.mkdir()
        (inner / "cgroup.procs").write_text(str(sleeper.pid))
        sensor.poll()
        sleeper.kill()
        sleeper.wait(WAIT)
        sensor.poll()
        own, moved = v2_group.stat().st_ino, inner.stat().st_ino
        assert [(e.kind, e.lineage, e.previous) for e in seen.events if e.pid == sleeper.pid] == [
            ("fork", (own,), 0),
            ("move", (moved, own), own),
            ("exit", (moved, own), 0),
        ]
        assert sensor.statistics().events == len(seen.events)

    def test_growth_is_a_burst(self, sensor: PollSensor, seen: Recorder, v2_group: Path):
        script = f'echo 0 > "{v2_group}/cgroup.procs"; echo; read x; a=$(head -c 16000000 /dev/zero'
        script += " | tr '\\0' x); echo; read x"
        with subprocess.Popen(
            ["/bin/sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, bufsize=0
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            sensor.poll()
            process.stdin.write(b"\n")
            process.stdout.readline()
            sensor.poll()
            process.stdin.write(b"\n")
        burst = next(e for e in seen.events if e.kind == "burst")
        assert burst.size >= 8 << 20

    def test_an_oom_kill_is_seen_by_its_counter(self, watcher: Watcher, tmp_path: Path):
        seen = Recorder()
        sensor = PollSensor(watcher, seen, reason="", period=3600.0, layout=Layout())
        (tmp_path / "cgroup.procs").write_text("")
        events = tmp_path / "memory.events.local"
        events.write_text("high 0\noom_kill 1\n")
        sensor.add_root(tmp_path)
        sensor.poll()
        seen.events.clear()
        events.write_text("high 5\noom_kill 3\n")
        sensor.poll()
        assert [e.kind for e in seen.events] == ["oom", "oom"]


def test_without_bpf_it_polls_and_says_why(
    watcher: Watcher, seen: Recorder, monkeypatch: pytest.MonkeyPatch
):
    from agentrt.errors import BackendUnavailable
    from agentrt.resources import sensors_bpf

    def refuse(*arguments: object, **options: object) -> None:
        raise BackendUnavailable("No BPF here.", remedy="Use another kernel.")

    monkeypatch.setattr(sensors_bpf, "BpfSensor", refuse)
    sensor = open_sensors(watcher, seen)
    assert sensor.backend == "poll"
    assert sensor.reason == "No BPF here. Use another kernel."
    sensor.close()
    with pytest.raises(BackendUnavailable):
        open_sensors(watcher, seen, backend="bpf")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ((2, 443, 6, "192.0.2.1"), "tcp 192.0.2.1:443"),
        ((10, 53, 17, "2001:db8::1"), "udp [2001:db8::1]:53"),
        ((2, 0, 1, "127.0.0.1"), "protocol 1 127.0.0.1:0"),
    ],
)
def test_unpacking_an_address(address: tuple[int, int, int, str], text: str):
    family, port, protocol, host = address
    raw = socket.inet_pton(family, host).ljust(16, b"\0")
    packed = struct.pack("=HHI16s", family, socket.htons(port), protocol, raw)
    record = struct.pack("=Q8QQIIIi64s", 1_500_000_000, 5, 6, *[0] * 6, 0, 8, 42, 0, 1, packed)
    event = unpack_event(record)
    assert event.text == text
    assert event.denied
    assert (event.kind, event.time, event.lineage, event.pid) == ("connect", 1.5, (5, 6), 42)
