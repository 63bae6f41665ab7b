"""The recording behind ``latency_spike``: one service, seen from five sides, and its latency."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.world import World, minutes, stamp

__all__ = ["Spike", "latency_tables", "record_latency", "record_spike"]

LENGTH = 30
ONSET = 8


@dataclass(frozen=True, slots=True)
class Spike:
    """One incident. Milliseconds of p95 latency; shares from 0 to 1; loss and CPU in percent."""

    start: str
    service: str
    region: str
    peak: float = 1900.0
    loss: float = 0.1
    database_busy: float = 0.45
    hit_share: float = 0.94
    cpu: float = 48.0
    deploy: str = ""


SPIKES = (
    Spike("2026-03-20T12:00:00Z", "catalog", "eu", deploy="Sort search results by price in SQL"),
    Spike("2026-03-21T12:00:00Z", "catalog", "eu", database_busy=0.98),
    Spike("2026-03-22T12:00:00Z", "basket", "us", hit_share=0.31),
    Spike("2026-03-23T12:00:00Z", "basket", "us", loss=6.5, database_busy=0.97),
    Spike("2026-03-24T12:00:00Z", "basket", "eu", cpu=97.0),
    Spike(
        "2026-03-25T12:00:00Z", "catalog", "us", deploy="Correct a typing mistake in a help page"
    ),
    Spike("2026-03-26T12:00:00Z", "catalog", "us", peak=310.0),
)


def latency_tables(world: World) -> None:
    """Declare the tables that ``record_spike`` fills."""
    world.table("deploys", "ts TEXT, service TEXT, region TEXT, version TEXT, summary TEXT")
    world.table("database", "ts TEXT, service TEXT, region TEXT, connections INTEGER, most INTEGER")
    world.table("cache", "ts TEXT, service TEXT, region TEXT, hits INTEGER, misses INTEGER")
    world.table("network", "ts TEXT, region TEXT, link TEXT, loss_percent REAL")
    world.table("cpu", "ts TEXT, service TEXT, region TEXT, host TEXT, percent REAL")


def record_latency(world: World) -> None:
    """Add latency, deploys, database, cache, network and hosts of every incident."""
    latency_tables(world)
    for spike in SPIKES:
        record_spike(world, spike)


def record_spike(world: World, spike: Spike) -> None:
    """Add one incident; the tables are declared already."""
    asked = {"service": spike.service, "region": spike.region}
    asked |= {"start_time": spike.start, "end_time": stamp(spike.start, LENGTH)}
    samples = []
    for minute, moment in minutes(spike.start, LENGTH):
        bad = minute >= ONSET
        samples.append((moment, world.near(spike.peak if bad else 180.0)))
        _record_minute(world, spike, moment, bad)
    world.metric("latency", asked, samples)
    if spike.deploy:
        moment = stamp(spike.start, ONSET - 3)
        world.row("deploys", moment, spike.service, spike.region, "v218", spike.deploy)
    before = stamp(spike.start, -3 * 24 * 60)
    world.row("deploys", before, spike.service, spike.region, "v217", "Update dependencies")


def _record_minute(world: World, spike: Spike, moment: str, bad: bool) -> None:
    what = (moment, spike.service, spike.region)
    busy = spike.database_busy if bad else 0.45
    world.row("database", *what, min(200, int(world.near(200 * busy, 0.01))), 200)
    hits = int(world.near(10_000 * (spike.hit_share if bad else 0.94), 0.02))
    world.row("cache", *what, hits, max(0, 10_000 - hits))
    for link in ("edge-core", "core-storage"):
        hit = bad and link == "core-storage"
        world.row("network", moment, spike.region, link, world.near(spike.loss if hit else 0.1))
    for number in range(3):
        world.row(
            "cpu", *what, f"{spike.service}-{number}", world.near(spike.cpu if bad else 48.0, 0.02)
        )
