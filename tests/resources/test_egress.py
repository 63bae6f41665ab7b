"""Egress policies of cgroups, against real sockets on the loopback."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt.errors import ConfigError
from agentrt.resources.egress import Allow, Egress, parse_allow
from agentrt.resources.sensors import SensorEvent, open_sensors
from agentrt.resources.watch import Watcher

WAIT = 20.0
CONNECT = """
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(10)
    try:
        s.connect((host, port)) if kind == "tcp" else s.sendto(b"x", (host, port))
    except PermissionError:
        sys.exit(13)
"""


def reach(group: Path, kind: str, host: str, port: int) -> bool:
    """Whether a process in the group may connect or send there."""
    script = f'echo 0 > "{group}/cgroup.procs"; exec "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-c", CONNECT, kind, host, str(port)],
        timeout=WAIT,
        check=False,
    )
    assert done.returncode in (0, 13)
    return done.returncode == 0


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a listener on the loopback, for both families."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def egress() -> Iterator[Egress]:
    egress = Egress()
    yield egress
    egress.close()


@pytest.mark.requires_root
@pytest.mark.requires_bpf
class TestEgress:
    def test_nothing_may_be_reached(self, egress: Egress, v2_group: Path, server: int):
        assert reach(v2_group, "tcp", "127.0.0.1", server)
        own = egress.restrict(v2_group)
        for kind in ("tcp", "udp"):
            for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                assert not reach(v2_group, kind, host, server)
        assert egress.refused(own) == 6

    def test_others_are_not_touched(self, egress: Egress, v2_group: Path, server: int):
        egress.restrict(v2_group)
        with socket.create_connection(("127.0.0.1", server), timeout=WAIT):
            pass

    def test_an_allow_list(self, egress: Egress, v2_group: Path, server: int):
        egress.restrict(v2_group, [parse_allow("127.0.0.0/8"), parse_allow(f"[::1]:{server}")])
        assert reach(v2_group, "tcp", "127.0.0.1", server)
        assert reach(v2_group, "tcp", "::ffff:127.0.0.1", server)
        assert reach(v2_group, "tcp", "::1", server)
        assert not reach(v2_group, "udp", "::1", 9)
        assert not reach(v2_group, "udp", "192.0.2.1", 9)

    def test_it_holds_below_and_the_nearest_decides(
        self, egress: Egress, v2_group: Path, server: int
    ):
        outer, inner = v2_group / "a", v2_group / "b"
        outer.mkdir()
        inner.mkdir()
        egress.restrict(v2_group)
        egress.restrict(inner, [parse_allow("127.0.0.1/32")])
        assert not reach(outer, "tcp", "127.0.0.1", server)
        assert reach(inner, "tcp", "127.0.0.1", server)

    def test_replacing_and_lifting(self, egress: Egress, v2_group: Path, server: int):
        own = egress.restrict(v2_group, [parse_allow("127.0.0.1/32")])
        assert reach(v2_group, "tcp", "127.0.0.1", server)
        egress.restrict(v2_group, [parse_allow("192.0.2.0/24")])
        assert not reach(v2_group, "tcp", "127.0.0.1", server)
        egress.lift(own)
        egress.lift(own)
        assert reach(v2_group, "tcp", "127.0.0.1", server)
        assert egress.refused(own) == 0

    def test_a_refusal_is_a_connect_event(self, v2_group: Path, server: int):
        denied: list[SensorEvent] = []
        arrived = threading.Event()

        def sink(event: SensorEvent) -> None:
            if event.denied:
                denied.append(event)
                arrived.set()

        watcher = Watcher()
        sensor = open_sensors(watcher, sink, [v2_group], backend="bpf")
        egress = Egress(sensor)
        egress.restrict(v2_group)
        assert not reach(v2_group, "tcp", "127.0.0.1", server)
        assert arrived.wait(WAIT)
        assert denied[0].text == f"tcp 127.0.0.1:{server}"
        assert denied[0].cgroup_id == v2_group.stat().st_ino
        egress.close()
        sensor.close()
        watcher.close()


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", 0),
        ("192.0.2.1:443", "192.0.2.1/32", 443),
        ("2001:db8::/32", "2001:db8::/32", 0),
        ("[2001:db8::1]:53", "2001:db8::1/128", 53),
    ],
)
def test_parsing(text: str, network: str, port: int):
    assert parse_allow(text) == Allow(ipaddress.ip_network(network), port)


@pytest.mark.parametrize("text", ["", "example.org", "10.0.0.1/8", "1.2.3.4:x", "1.2.3.4:70000"])
def test_what_is_no_network(text: str):
    with pytest.raises(ConfigError, match="is not a network"):
        parse_allow(text)
