"""The recording behind ``queue_backlog``: five evenings of one message broker."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.world import World, minutes, stamp

__all__ = ["record_queues"]

LENGTH = 30
CONSUMERS = 6


@dataclass(frozen=True, slots=True)
class _Evening:
    """One incident: ``growth`` is messages a minute, ``rejected`` deliveries of one message."""

    start: str
    region: str
    queue: str
    growth: int = 0
    running: int = CONSUMERS
    rejected: int = 0
    publish_factor: float = 1.0
    note: str = ""


EVENINGS = (
    _Evening("2026-03-02T18:00:00Z", "eu", "invoices", growth=900, running=0),
    _Evening("2026-03-03T18:00:00Z", "eu", "invoices", growth=700, rejected=48),
    _Evening(
        "2026-03-04T18:00:00Z",
        "us",
        "orders",
        growth=1100,
        publish_factor=4.2,
        note="Spring sale opens at 18:00 in the us region; expect four times the orders.",
    ),
    _Evening(
        "2026-03-05T18:00:00Z",
        "us",
        "orders",
        growth=1000,
        publish_factor=3.8,
        note="Rack 12 gets a new power supply; no effect on traffic is expected.",
    ),
    _Evening("2026-03-06T18:00:00Z", "eu", "orders"),
    _Evening("2026-03-07T18:00:00Z", "eu", "orders", growth=600),
)


def record_queues(world: World) -> None:
    """Add depths, consumers, publish rates, change notes and the log of the workers."""
    world.table("queue_depth", "ts TEXT, region TEXT, queue TEXT, depth INTEGER")
    world.table("consumers", "ts TEXT, region TEXT, queue TEXT, consumer TEXT, running INTEGER")
    world.table("publish_rate", "ts TEXT, region TEXT, queue TEXT, per_second REAL, usual REAL")
    world.table("change_notes", "ts TEXT, region TEXT, note TEXT")
    for evening in EVENINGS:
        _record_series(world, evening)
        _record_rejections(world, evening)
        if evening.note:
            world.row("change_notes", stamp(evening.start, -90), evening.region, evening.note)


def _record_series(world: World, evening: _Evening) -> None:
    for minute, moment in minutes(evening.start, LENGTH):
        where = (moment, evening.region, evening.queue)
        depth = int(world.near(300, 0.2)) + evening.growth * minute
        world.row("queue_depth", *where, depth)
        usual = 40.0
        world.row("publish_rate", *where, world.near(usual * evening.publish_factor), usual)
        for number in range(CONSUMERS):
            running = int(number < evening.running or minute < 2)
            world.row("consumers", *where, f"worker-{number + 1}", running)


def _record_rejections(world: World, evening: _Evening) -> None:
    for number in range(evening.rejected + 3):
        stuck = number < evening.rejected
        world.log(
            "worker",
            stamp(evening.start, (number % LENGTH) + 0.25),
            region=evening.region,
            queue=evening.queue,
            event="rejected",
            message="msg-7f31" if stuck else f"msg-{world.random.randrange(16**4):04x}",
            reason="unknown_currency" if stuck else "timeout",
        )
