"""Where the processes of a cgroup may connect and send to, decided in the kernel.

Cgroup hooks on ``connect`` and ``sendmsg``: a refused call fails with EPERM at once, in the process
and in all that it starts, in containers as well. What they do not see: raw sockets (which need
CAP_NET_RAW), connections opened before the policy, and those that another process passes on.
"""

from __future__ import annotations

import ipaddress
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from agentrt.ebpf import BpfLink, BpfObject
from agentrt.errors import BackendUnavailable, ConfigError
from agentrt.resources.sensors import Sensor
from agentrt.resources.sensors_bpf import BpfSensor

__all__ = ["Allow", "Egress", "parse_allow"]

HOOKS = ("guard_connect4", "guard_connect6", "guard_sendmsg4", "guard_sendmsg6")
ID = struct.Struct("=Q")
KEY = struct.Struct("=IQ16s")
GROUP_BITS = 64
MAPPED = b"\0" * 10 + b"\xff\xff"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Allow:
    """One network that may be reached, on one port or (0) on any."""

    network: Network
    port: int = 0

    def key(self, cgroup_id: int) -> bytes:
        """As ``struct network`` of ``ebpf/egress.bpf.c``."""
        raw, bits = self.network.network_address.packed, self.network.prefixlen
        if self.network.version == 4:
            raw, bits = MAPPED + raw, bits + 96
        return KEY.pack(GROUP_BITS + bits, cgroup_id, raw)


def parse_allow(text: str) -> Allow:
    """Parse ``10.0.0.0/8``, ``192.0.2.1:443``, ``2001:db8::/32`` or ``[2001:db8::1]:443``.

    Raises:
        ConfigError: it is none of these.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port) if port else 0
        if not 0 <= number < 65536:
            raise ValueError(f"{number} is no port")
        return Allow(ipaddress.ip_network(host), number)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a network: {error}.",
            remedy="Write it as 10.0.0.0/8, 192.0.2.1:443 or [2001:db8::1]:443.",
        ) from error


@dataclass(slots=True)
class _Policy:
    links: tuple[BpfLink, ...]
    keys: tuple[bytes, ...]


class Egress:
    """Egress policies by cgroup; all of them go with ``close`` or with the process.

    A policy holds for the directory and everything below; where policies nest, the nearest to the
    process decides (and a refusal is counted once per attached policy). With a BPF sensor, refusals
    come as its ``connect`` events.

    Raises:
        BackendUnavailable: the programs do not load here.
    """

    def __init__(self, sensor: Sensor | None = None) -> None:
        shared = sensor.shared_maps() if isinstance(sensor, BpfSensor) else {}
        self._object = BpfObject("egress", reuse=shared)
        self._policies: dict[int, _Policy] = {}
        self._lock = threading.Lock()

    def restrict(self, directory: Path, allow: Iterable[Allow] = ()) -> int:
        """Let the cgroup reach only ``allow`` (nothing when empty); returns its cgroup id.

        A second call replaces the policy. Two entries of one network with different ports: the
        last holds.

        Raises:
            OSError: the v2 directory is not there, or there are too many networks.
            BackendUnavailable: the kernel does not attach.
        """
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            cgroup_id = os.fstat(fd).st_ino
            with self._lock:
                self._replace(cgroup_id, fd, tuple(allow))
        finally:
            os.close(fd)
        return cgroup_id

    def _replace(self, cgroup_id: int, fd: int, allow: tuple[Allow, ...]) -> None:
        maps = self._object.maps
        keys = {entry.key(cgroup_id): struct.pack("=I", entry.port) for entry in allow}
        old = self._policies.get(cgroup_id)
        # New networks first, then the marker that makes the policy hold, then the programs: at no
        # moment is more allowed than before and after.
        for key, port in keys.items():
            maps["allowed"].set(key, port)
        if old is None:
            maps["refused"].set(ID.pack(cgroup_id), ID.pack(0))
            links = self._attach(cgroup_id, fd)
        else:
            links = old.links
            for key in set(old.keys) - set(keys):
                maps["allowed"].delete(key)
        self._policies[cgroup_id] = _Policy(links, tuple(keys))

    def _attach(self, cgroup_id: int, fd: int) -> tuple[BpfLink, ...]:
        links: list[BpfLink] = []
        try:
            for hook in HOOKS:
                links.append(self._object.attach(hook, cgroup=fd))
        except BackendUnavailable:
            for link in links:
                self._object.detach(link)
            self._object.maps["refused"].delete(ID.pack(cgroup_id))
            raise
        return tuple(links)

    def lift(self, cgroup_id: int) -> None:
        """Remove the policy, also of a cgroup that is gone; idempotent."""
        with self._lock:
            policy = self._policies.pop(cgroup_id, None)
            if policy is None:
                return
            for link in policy.links:
                self._object.detach(link)
            self._object.maps["refused"].delete(ID.pack(cgroup_id))
            for key in policy.keys:
                self._object.maps["allowed"].delete(key)

    def refused(self, cgroup_id: int) -> int:
        """How many calls the policy of this cgroup refused; 0 without a policy."""
        value = self._object.maps["refused"].get(ID.pack(cgroup_id))
        return ID.unpack(value)[0] if value else 0

    def close(self) -> None:
        """Lift every policy; idempotent."""
        for cgroup_id in list(self._policies):
            self.lift(cgroup_id)
        self._object.close()
