"""What is replayed: memory curves of recorded runs, and who plays which of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from agentrt.errors import ConfigError

__all__ = [
    "BASE",
    "CHUNK",
    "PAGE",
    "SCENARIOS",
    "Curve",
    "Role",
    "Scenario",
    "default_curves",
    "load_curve",
    "parse_size",
    "scenario_named",
]

PAGE = 4096
MIB = 1 << 20
BASE = 100 * MIB
"""Bytes that every replay holds before its curve begins."""
CHUNK = 64 * MIB
"""Bytes of one allocation; memory goes back to the system by whole ones only."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A recorded run's memory: ``samples`` are (seconds from its start, bytes), times ascending."""

    name: str
    samples: tuple[tuple[float, int], ...]

    @property
    def peak(self) -> int:
        """The largest sample, in bytes."""
        return max(size for _, size in self.samples)

    @property
    def seconds(self) -> float:
        """When the last sample was taken."""
        return self.samples[-1][0]

    @property
    def spacing(self) -> float:
        """The usual time between two samples; 0 for a single one."""
        gaps = [late - early for (early, _), (late, _) in pairwise(self.samples)]
        return statistics.median(gaps) if gaps else 0.0

    def scaled(self, factor: float) -> Curve:
        """The curve with every size multiplied by ``factor``."""
        return Curve(self.name, tuple((at, int(size * factor)) for at, size in self.samples))


@dataclass(frozen=True, slots=True)
class Role:
    """One replay: its name in cgroups and results, its curve's file name, its priority."""

    name: str
    curve: str
    priority: Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who runs together.

    ``limit`` is the memory limit, in bytes, of the published runs of this set; ``speed`` how much
    faster than recorded they were played; ``low_high`` the memory.high that they gave to each
    replay of low priority.
    """

    name: str
    roles: tuple[Role, ...]
    limit: int
    speed: float
    low_high: int


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "dask-github3",
            (
                Role("high", "dask-11628", "high"),
                Role("low1", "github3.py-673", "low"),
                Role("low2", "github3.py-673", "low"),
            ),
            limit=1100 * MIB,
            speed=50.0,
            low_high=400 * MIB,
        ),
        Scenario(
            "burst",
            (
                Role("high", "pre-commit-2524", "high"),
                Role("low1", "dask-11628", "low"),
                Role("low2", "faker-1520", "low"),
            ),
            limit=2560 * MIB,
            speed=100.0,
            low_high=320 * MIB,
        ),
    )
}


def scenario_named(name: str) -> Scenario:
    """Return the scenario.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    known = ", ".join(SCENARIOS)
    raise ConfigError(f"There is no scenario {name!r}.", remedy=f"Choose one of: {known}.")


def default_curves() -> Path:
    """Where the curves lie beside a checkout."""
    checkout = Path(__file__).resolve().parents[3]
    return checkout.parent / "shared" / "data" / "agentcgroup" / "contention"


def load_curve(directory: Path, name: str) -> Curve:
    """Read ``NAME.json`` with its ``memory_curve`` of [seconds, bytes] pairs.

    Raises:
        ConfigError: the file is missing or is not a curve.
    """
    path = directory / f"{name}.json"
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        samples = tuple((float(at), int(size)) for at, size in data["memory_curve"])
    except OSError as error:
        raise ConfigError(
            f"The memory curve {path} cannot be read: {error.strerror}.",
            remedy="The traces are not part of this repository: give their folder with "
            "--curves DIR, holding NAME.json with memory_curve: [[seconds, bytes], ...].",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _malformed(path, repr(error)) from error
    if not samples or any(size < 0 for _, size in samples):
        raise _malformed(path, "no samples, or a negative size")
    if any(late < early for (early, _), (late, _) in pairwise(samples)):
        raise _malformed(path, "its times do not ascend")
    return Curve(name, samples)


def _malformed(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is not a memory curve: {why}.",
        remedy="It must hold memory_curve: [[seconds, bytes], ...] with ascending seconds.",
    )


def parse_size(text: str) -> int:
    """Return bytes from ``1100M``, ``2.5G``, ``512K`` or a plain number; powers of 1024.

    Raises:
        ConfigError: it is none of these, or not above 0.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    bare = text.strip().upper().removesuffix("IB").removesuffix("B")
    factor = units.get(bare[-1:], 1)
    try:
        size = int(float(bare.rstrip("KMG")) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{text!r} is not a size.", remedy="Write it as 1100M, 2.5G or bytes.")
    return size
