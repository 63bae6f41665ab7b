"""Pure: what to write into which cgroup file for a limit, and how to read the counters back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Counters", "LimitsLike", "Setting", "flat_counters", "settings"]

CPU_PERIOD = 100_000
CPU_QUOTA_FLOOR = 1_000
"""Microseconds; the kernel refuses a smaller quota."""


class LimitsLike(Protocol):
    """Limits of a tool call: memory in bytes, CPU in cores, ``None`` for no limit."""

    @property
    def memory(self) -> int | None: ...
    @property
    def cpu(self) -> float | None: ...
    @property
    def pids(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Setting:
    """One write. ``optional`` ones only sharpen a limit: their absence leaves it in force."""

    controller: str
    file: str
    value: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """What one cgroup measured; ``None`` where the host has no such counter. Bytes, seconds."""

    peak_memory: int | None = None
    cpu_seconds: float | None = None
    peak_pids: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None


def settings(limits: LimitsLike, version: int) -> list[Setting]:
    """The writes that put ``limits`` in force under cgroup ``version`` 1 or 2, in order."""
    out: list[Setting] = []
    if limits.memory is not None:
        out += _memory(str(limits.memory), version)
    if limits.cpu is not None:
        out += _cpu(max(CPU_QUOTA_FLOOR, round(limits.cpu * CPU_PERIOD)), version)
    if limits.pids is not None:
        out.append(Setting("pids", "pids.max", str(limits.pids)))
    return out


def _memory(value: str, version: int) -> list[Setting]:
    if version == 2:
        return [
            Setting("memory", "memory.max", value),
            Setting("memory", "memory.swap.max", "0", optional=True),
        ]
    return [
        Setting("memory", "memory.limit_in_bytes", value),
        Setting("memory", "memory.memsw.limit_in_bytes", value, optional=True),
        Setting("memory", "memory.swappiness", "0", optional=True),
    ]


def _cpu(quota: int, version: int) -> list[Setting]:
    if version == 2:
        return [Setting("cpu", "cpu.max", f"{quota} {CPU_PERIOD}")]
    return [
        Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD)),
        Setting("cpu", "cpu.cfs_quota_us", str(quota)),
    ]


def flat_counters(text: str | None) -> Mapping[str, int]:
    """Parse a flat-keyed file (``name value`` a line); lines of another shape are skipped."""
    out: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            out[name] = int(value)
    return out
