"""The recording behind ``certificate_expiry``: what front ends served and what renewal did."""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.workflows.guides.telemetry.world import World, stamp

__all__ = ["record_certificates"]

DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One endpoint at ``now``: days left on what it serves and on what the store holds.

    ``renewal`` is the result that the renewal job logs, empty if it never runs for the endpoint.
    """

    name: str
    now: str
    served_days: float
    stored_days: float
    renewal: str
    reason: str = "none"
    reloaded_days_ago: float = 30.0


ENDPOINTS = (
    _Endpoint("shop.example.net", "2026-03-10T08:00:00Z", 61.0, 61.0, "ok"),
    _Endpoint("api.example.net", "2026-03-11T08:00:00Z", 2.5, 2.5, "failed", "dns_challenge"),
    _Endpoint("pay.example.net", "2026-03-12T08:00:00Z", 1.2, 88.0, "ok"),
    _Endpoint("mail.example.net", "2026-03-13T08:00:00Z", 3.0, 87.0, "ok", reloaded_days_ago=0.5),
    _Endpoint("wiki.example.net", "2026-03-14T08:00:00Z", 4.0, 4.0, ""),
)


def record_certificates(world: World) -> None:
    """Add served and stored certificates, reloads, and the log of the renewal job."""
    world.table("served", "ts TEXT, endpoint TEXT, serial TEXT, not_after TEXT")
    world.table("stored", "ts TEXT, endpoint TEXT, serial TEXT, not_after TEXT")
    world.table("reloads", "ts TEXT, endpoint TEXT, host TEXT")
    for endpoint in ENDPOINTS:
        _record_endpoint(world, endpoint)


def _record_endpoint(world: World, endpoint: _Endpoint) -> None:
    old, new = (f"{world.random.getrandbits(48):012x}" for _ in range(2))
    same = endpoint.served_days == endpoint.stored_days
    served_until = stamp(endpoint.now, endpoint.served_days * DAY)
    stored_until = stamp(endpoint.now, endpoint.stored_days * DAY)
    for hour in range(12):
        world.row("served", stamp(endpoint.now, -60 * hour), endpoint.name, old, served_until)
    stored = old if same else new
    world.row("stored", stamp(endpoint.now, -2 * DAY), endpoint.name, stored, stored_until)
    for host in ("edge-1", "edge-2"):
        reloaded = stamp(endpoint.now, -endpoint.reloaded_days_ago * DAY)
        world.row("reloads", reloaded, endpoint.name, host)
    for day in range(5 if endpoint.renewal else 0):
        world.log(
            "renewal",
            stamp(endpoint.now, -day * DAY - 300),
            endpoint=endpoint.name,
            result=endpoint.renewal,
            reason=endpoint.reason,
        )
