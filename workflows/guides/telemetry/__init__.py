"""Recorded telemetry for the shipped guides, made from a seed: nothing binary is kept in the tree.

``write_telemetry(directory, guide)`` writes ``telemetry.db`` (SQLite), ``logs/*.log``,
``metrics.json``, and ``sources.toml``, which says which source of the guide's queries is recorded
where. The same guide and seed give the same rows and the same bytes of text. Every incident of a
guide has its own stretch of time, so one recording serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agentrt.errors import ConfigError
from agentrt.workflows.guides.telemetry.certificates import record_certificates
from agentrt.workflows.guides.telemetry.checkout import record_checkout
from agentrt.workflows.guides.telemetry.disks import record_disks
from agentrt.workflows.guides.telemetry.failover import record_failover
from agentrt.workflows.guides.telemetry.latency import record_latency
from agentrt.workflows.guides.telemetry.queues import record_queues
from agentrt.workflows.guides.telemetry.world import World

__all__ = ["RECORDERS", "World", "write_telemetry"]

SEED = 20260302

RECORDERS: Mapping[str, Callable[[World], None]] = {
    "certificate_expiry": record_certificates,
    "checkout_outage": record_checkout,
    "database_failover": record_failover,
    "disk_full": record_disks,
    "latency_spike": record_latency,
    "queue_backlog": record_queues,
}


def write_telemetry(directory: Path, guide: str, *, seed: int = SEED) -> None:
    """Write the recording of a shipped guide into ``directory``, which is made if it is missing.

    Raises:
        ConfigError: there is no recording of that name, or the directory already holds one.
    """
    if guide not in RECORDERS:
        raise ConfigError(
            f"There is no recorded telemetry for a guide {guide!r}.",
            remedy=f"Choose one of: {', '.join(RECORDERS)}.",
        )
    world = World(f"{guide}:{seed}")
    RECORDERS[guide](world)
    world.write(directory)
