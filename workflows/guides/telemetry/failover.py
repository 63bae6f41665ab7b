"""The recording behind ``database_failover``: a primary, its replicas, and who writes to them."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.world import World, minutes, stamp

__all__ = ["record_failover"]

LENGTH = 20
ONSET = 6


@dataclass(frozen=True, slots=True)
class _Night:
    """One incident: whether probes of the primary fail, and seconds its best replica is behind."""

    start: str
    cluster: str
    failing: bool
    lag: float
    note: str = ""


NIGHTS = (
    _Night("2026-04-10T02:00:00Z", "ledger", failing=True, lag=0.4),
    _Night("2026-04-11T02:00:00Z", "ledger", failing=True, lag=0.6),
    _Night(
        "2026-04-12T02:00:00Z",
        "stock",
        failing=True,
        lag=240.0,
        note="Stock levels are rebuilt from the warehouse feed every hour.",
    ),
    _Night(
        "2026-04-13T02:00:00Z",
        "ledger",
        failing=True,
        lag=190.0,
        note="The ledger is the only record of payments taken.",
    ),
    _Night("2026-04-14T02:00:00Z", "stock", failing=False, lag=0.3),
)


def record_failover(world: World) -> None:
    """Add probes of the primaries, the replicas' lag, notes, and the databases' log."""
    world.table("probes", "ts TEXT, cluster TEXT, instance TEXT, ok INTEGER")
    world.table("replicas", "ts TEXT, cluster TEXT, instance TEXT, lag_seconds REAL")
    world.table("notes", "cluster TEXT, ts TEXT, note TEXT")
    for night in NIGHTS:
        for minute, moment in minutes(night.start, LENGTH):
            _record_minute(world, night, moment, minute >= ONSET)
        if night.note:
            world.row("notes", night.cluster, stamp(night.start, -600), night.note)


def _record_minute(world: World, night: _Night, moment: str, bad: bool) -> None:
    primary = f"{night.cluster}-1"
    down = bad and night.failing
    world.row("probes", moment, night.cluster, primary, int(not down))
    for number, factor in ((2, 1.0), (3, 2.5)):
        lag = world.near(night.lag * factor if bad else 0.3)
        world.row("replicas", moment, night.cluster, f"{night.cluster}-{number}", lag)
    event = "io_error" if down else "checkpoint"
    world.log("database", moment, instance=primary, event=event)
