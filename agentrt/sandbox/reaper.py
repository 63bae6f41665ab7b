"""Cleaning up after runs whose owner died without doing it.

Only what belongs to a provably dead owner is touched: another boot, or a process that is gone or is
a later one with the same number. An owner in another pid namespace cannot be judged and is left.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from agentrt.errors import BackendUnavailable
from agentrt.resources.cgroup import CgroupFiles, Layout, clear_run, read_layout
from agentrt.sandbox.state import (
    PREFIX,
    RECORD,
    Owner,
    Record,
    Verdict,
    boot_id,
    forget,
    judge,
    parse_record,
    pid_namespace,
    read_records,
    start_time,
    state_directory,
)
from agentrt.sandbox.tracked import kill_marked
from agentrt.sandbox.trees import remove_tree

__all__ = ["ContainerReaper", "Judge", "ReapReport", "reap", "reap_now"]

ROUNDS = 60
PAUSE = 0.05


class ContainerReaper(Protocol):
    """Removes containers whose label names a dead owner; returns how many it removed.

    Raises:
        BackendUnavailable: no engine answers.
    """

    def __call__(self, dead: Callable[[Owner], bool]) -> int: ...


@dataclass(slots=True)
class ReapReport:
    """What one pass found and removed; ``failed`` names what is still there."""

    runs: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    processes: int = 0
    containers: int = 0
    failed: list[str] = field(default_factory=list)


class Judge:
    """Tells dead owners from live ones on this machine."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._boot = boot_id(proc)
        self._pidns = pid_namespace(proc)

    def __call__(self, owner: Owner) -> Verdict:
        start = start_time(owner.pid, self._proc)
        return judge(owner, boot=self._boot, pidns=self._pidns, start=start)


def reap_now(
    directory: Path | None = None,
    *,
    temp: Path | None = None,
    layout: Layout | None = None,
    containers: ContainerReaper | None = None,
    sweep: bool = False,
) -> ReapReport:
    """Remove what dead runs left: processes, containers, cgroups, directories, records. Blocking.

    ``containers`` is asked when a dead run used Docker; with ``sweep`` always, since containers
    carry their owner in a label and can outlive the record.
    """
    directory = directory or state_directory()
    verdict, report = Judge(), ReapReport()
    dead: list[Record] = []
    for record in read_records(directory):
        if verdict(record.owner) == "dead":
            dead.append(record)
        else:
            report.live.append(record.run_id)
    used_docker = any(record.docker for record in dead)
    no_containers = True
    if containers is not None and (used_docker or sweep):
        no_containers = _reap_containers(containers, verdict, report, must=used_docker)
    for record in dead:
        clean = _reap_run(record, layout or read_layout(), report)
        # While containers may be left, so must the record that makes the next start look for them.
        if clean and (no_containers or not record.docker):
            forget(directory, record.run_id)
            report.runs.append(record.run_id)
    _reap_stray_directories(temp or Path(tempfile.gettempdir()), verdict, report)
    return report


def _reap_containers(
    containers: ContainerReaper, verdict: Judge, report: ReapReport, *, must: bool
) -> bool:
    try:
        report.containers += containers(lambda owner: verdict(owner) == "dead")
    except BackendUnavailable as error:
        if must:
            report.failed.append(f"containers: {error}")
        return False
    return True


def _reap_run(record: Record, layout: Layout, report: ReapReport) -> bool:
    cgroups = _clear_cgroups(record, layout, report)
    report.processes += len(kill_marked(f"{record.run_id}/"))
    place = Path(record.temp)
    directory = place.name != f"{PREFIX}{record.run_id}" or _remove_own(place)
    if not cgroups:
        report.failed.append(f"cgroups of {record.run_id}")
    if not directory:
        report.failed.append(str(place))
    return cgroups and directory


def _clear_cgroups(record: Record, layout: Layout, report: ReapReport) -> bool:
    files, killed = CgroupFiles(), set[int]()
    recorded: Sequence[Path] = [Path(path) for path in record.cgroups]
    for _ in range(ROUNDS):
        pids, gone = clear_run(record.run_id, layout, recorded, files)
        killed.update(pids)
        if gone:
            break
        time.sleep(PAUSE)
    report.processes += len(killed)
    return gone


def _reap_stray_directories(temp: Path, verdict: Judge, report: ReapReport) -> None:
    """Directories whose record is lost, as after a reboot, carry a copy of it."""
    for place in temp.glob(f"{PREFIX}r*"):
        with contextlib.suppress(OSError):
            if place.lstat().st_uid != os.geteuid() or place.is_symlink():
                continue
            record = parse_record((place / RECORD).read_text())
            if record is None or place.name != f"{PREFIX}{record.run_id}":
                continue
            if verdict(record.owner) == "dead":
                done = report.runs if _remove_own(place) else report.failed
                done.append(record.run_id)


def _remove_own(place: Path) -> bool:
    """Remove a run's directory, if it is our user's."""
    try:
        if place.lstat().st_uid != os.geteuid():
            return False
    except FileNotFoundError:
        return True
    return remove_tree(place)


async def reap(
    directory: Path | None = None,
    *,
    containers: ContainerReaper | None = None,
    sweep: bool = False,
) -> ReapReport:
    """``reap_now`` in a worker thread."""
    return await to_thread.run_sync(lambda: reap_now(directory, containers=containers, sweep=sweep))
