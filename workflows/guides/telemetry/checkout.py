"""The recording behind ``checkout_outage``: checkouts, payments, stock, and what is below them."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.latency import Spike, latency_tables, record_spike
from agentrt.workflows.guides.telemetry.world import World, minutes, stamp

__all__ = ["record_checkout"]

LENGTH = 30
ONSET = 8


@dataclass(frozen=True, slots=True)
class _Outage:
    """One incident; shares of failed calls from 0 to 1, log errors a minute."""

    spike: Spike
    failed: float = 0.3
    payments_failed: float = 0.01
    stock_failed: float = 0.01
    errors: int = 0


OUTAGES = (
    _Outage(Spike("2026-04-01T20:00:00Z", "checkout", "eu", peak=240.0), payments_failed=0.62),
    _Outage(Spike("2026-04-02T20:00:00Z", "checkout", "eu", database_busy=0.98)),
    _Outage(Spike("2026-04-03T20:00:00Z", "checkout", "us", peak=220.0), errors=9),
    _Outage(Spike("2026-04-04T20:00:00Z", "checkout", "us", peak=200.0), stock_failed=0.5),
    _Outage(Spike("2026-04-05T20:00:00Z", "checkout", "us", peak=200.0), failed=0.01),
    _Outage(Spike("2026-04-06T20:00:00Z", "checkout", "eu", peak=210.0)),
)


def record_checkout(world: World) -> None:
    """Add checkouts, calls to payment and stock, the log, and all that ``latency_spike`` reads."""
    latency_tables(world)
    world.table("checkouts", "ts TEXT, region TEXT, started INTEGER, failed INTEGER")
    world.table("calls", "ts TEXT, region TEXT, callee TEXT, total INTEGER, failed INTEGER")
    for outage in OUTAGES:
        record_spike(world, outage.spike)
        for minute, moment in minutes(outage.spike.start, LENGTH):
            _record_minute(world, outage, moment, minute >= ONSET)


def _record_minute(world: World, outage: _Outage, moment: str, bad: bool) -> None:
    region = outage.spike.region
    world.row(
        "checkouts", moment, region, 500, int(world.near(500 * (outage.failed if bad else 0.01)))
    )
    shares = {"payments": outage.payments_failed, "stock": outage.stock_failed}
    for callee, share in shares.items():
        failed = int(world.near(800 * (share if bad else 0.01)))
        world.row("calls", moment, region, callee, 800, failed)
    for number in range(outage.errors if bad else 0):
        error = "TaxTableMissing" if number else "Timeout"
        moment_of_line = stamp(moment, number / 10)
        world.log("checkout", moment_of_line, region=region, level="error", error=error)
    world.log("checkout", moment, region=region, level="info", error="none")
