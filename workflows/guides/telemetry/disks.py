"""The recording behind ``disk_full``: pools of hosts, how full they are, and with what."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.world import World, stamp

__all__ = ["record_disks"]

GIB = 1 << 30
SIZE = 200 * GIB


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool of hosts at ``now``; the first ``full`` of them are full of files of ``kind``."""

    name: str
    now: str
    hosts: int
    full: int = 0
    kind: str = "data"
    note: str = ""


POOLS = (
    _Pool("web", "2026-03-16T09:00:00Z", hosts=6, full=3, kind="log"),
    _Pool("batch", "2026-03-17T09:00:00Z", hosts=5, full=2, kind="core"),
    _Pool(
        "search",
        "2026-03-18T09:00:00Z",
        hosts=4,
        full=4,
        note="The index grows by a tenth a month; eight disks are on order for April.",
    ),
    _Pool("cache", "2026-03-19T09:00:00Z", hosts=4),
    _Pool(
        "archive",
        "2026-03-20T09:00:00Z",
        hosts=2,
        full=2,
        note="Archives are kept for a year; the present disks last until next winter.",
    ),
)
PATHS = {
    "log": "/var/log/app/access.log",
    "core": "/var/crash/core.worker",
    "data": "/srv/index/segment",
}


def record_disks(world: World) -> None:
    """Add disk use by host and the largest files on each."""
    world.table("disk_use", "ts TEXT, pool TEXT, host TEXT, mount TEXT, used_percent REAL")
    world.table("files", "ts TEXT, host TEXT, path TEXT, kind TEXT, bytes INTEGER")
    world.table("capacity_notes", "ts TEXT, pool TEXT, note TEXT")
    for pool in POOLS:
        if pool.note:
            world.row("capacity_notes", stamp(pool.now, -20_000), pool.name, pool.note)
        for number in range(pool.hosts):
            _record_host(world, pool, f"{pool.name}-{number + 1}", number < pool.full)


def _record_host(world: World, pool: _Pool, host: str, full: bool) -> None:
    for back in range(6):
        used = (97.0 if full else 55.0) - back * 0.5
        world.row(
            "disk_use", stamp(pool.now, -10 * back), pool.name, host, "/", world.near(used, 0.01)
        )
    for kind in PATHS:
        big = full and kind == pool.kind
        for number in range(4):
            size = int(world.near(30 * GIB if big else GIB, 0.2))
            world.row("files", stamp(pool.now, -5), host, f"{PATHS[kind]}.{number}", kind, size)
