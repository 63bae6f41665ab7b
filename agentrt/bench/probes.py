"""What single runs found at single rates, kept so that a search goes on where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentrt.bench.arrivals import draw_arrivals
from agentrt.bench.jobs import Stop
from agentrt.bench.metrics import mean
from agentrt.bench.records import RunRecord
from agentrt.bench.settings import BenchSettings, digest
from agentrt.bench.simulated import simulate
from agentrt.bench.watch import SlowdownWatch
from agentrt.bench.workload import Workload
from agentrt.errors import ConfigError

__all__ = ["Probe", "ProbeStore", "probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One run. ``p90`` is the slowdown's P90, of a run ended early at least that much.

    ``mean`` is the mean slowdown of the programs that ended.
    """

    policy: str
    rate: float
    seed: int
    p90: float
    mean: float | None
    whole: bool
    failed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict without the policy."""
        row = asdict(self)
        del row["policy"]
        return row


def probe(
    workload: Workload,
    isolated: Mapping[str, float],
    settings: BenchSettings,
    policy: str,
    seed: int,
    limit: float,
    stop: Stop,
) -> Probe | None:
    """Run a policy at one rate and seed; None if it was stopped.

    The run ends early, not ``whole``, once its P90 is certain to exceed ``limit``.
    """
    arrivals = draw_arrivals(
        workload.programs, settings.rate, seed, settings.time_scale, settings.arrivals
    )
    record = RunRecord(policy, seed, "simulated", settings.pool or 0, workload.name)
    watch = SlowdownWatch(record, arrivals, isolated, limit)
    ended = simulate(arrivals, record, settings, stop=stop, watch=watch)
    if not record.complete and watch.lost_at is None:
        return None
    rows = [row for row in record.programs if row.outcome == "finished"]
    slowdowns = [(row.finished - row.arrival) / isolated[row.program] for row in rows]
    return Probe(
        policy=policy,
        rate=settings.rate or 0.0,
        seed=seed,
        p90=watch.bound(ended),
        mean=mean(slowdowns),
        whole=record.complete,
        failed=sum(row.outcome == "failed" for row in record.programs),
    )


class ProbeStore:
    """One file of lines a policy and setting in ``directory``; other settings are other files.

    Args:
        directory: made when it does not exist.
        settings: everything that figures depend on besides policy, rate and seed.
        forget: policies whose earlier probes do not count; None: of all.

    Raises:
        ConfigError: the directory cannot be made, or a file is damaged.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], forget: Sequence[str] | None = ()
    ) -> None:
        self._directory = directory / "probes"
        self._digest = digest({**settings, "rate": None})
        self._forget = forget
        self._known: dict[str, dict[tuple[float, int], Probe]] = {}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{directory} cannot be made: {error}.", remedy="Name another --out directory."
            ) from error

    def get(self, policy: str, rate: float, seed: int) -> Probe | None:
        """Return an earlier probe, or None."""
        return self._of(policy).get((rate, seed))

    def add(self, found: Probe) -> None:
        """Keep a probe."""
        self._of(found.policy)[found.rate, found.seed] = found
        with self._path(found.policy).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found.to_json()) + "\n")

    def _of(self, policy: str) -> dict[tuple[float, int], Probe]:
        if policy not in self._known:
            path = self._path(policy)
            if self._forget is None or policy in self._forget:
                path.unlink(missing_ok=True)
            self._known[policy] = self._read(policy, path) if path.exists() else {}
        return self._known[policy]

    def _path(self, policy: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9._=+-]", "_", policy)
        return self._directory / f"{name}.{self._digest}.jsonl"

    @staticmethod
    def _read(policy: str, path: Path) -> dict[tuple[float, int], Probe]:
        found: dict[tuple[float, int], Probe] = {}
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                one = Probe(policy, **json.loads(line))
                found[one.rate, one.seed] = one
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} does not hold probes of ours: {error}.",
                remedy="Remove it, or give --fresh.",
            ) from error
        return found
