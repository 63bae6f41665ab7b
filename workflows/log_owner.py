"""Who drives a run. A process is told from a later one of the same number by when it started."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agentrt.errors import RequestError

__all__ = ["Owner", "RunBusy", "Survey", "survey", "this_process"]

Survey: TypeAlias = Literal["alive", "dead", "unknown"]
"""``unknown``: the owner is on another machine or in another container, where we cannot look."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that drives runs. ``started`` is in clock ticks after the machine's boot.

    ``token`` tells two logs of one process apart; ``since`` is when it claimed the run.
    """

    token: str
    pid: int
    started: int
    boot: str
    namespace: str
    host: str
    since: str = ""

    def row(self) -> tuple[object, ...]:
        """The columns that say who it is, without ``since``."""
        return astuple(self)[:-1]


class RunBusy(RequestError):
    """Another process drives this run."""

    def __init__(self, run_id: str, owner: Owner, found: Survey) -> None:
        what = "drives it" if found == "alive" else "may drive it: it cannot be seen from here"
        remedy = f"Wait for it, or stop process {owner.pid} and resume again."
        if found == "unknown":
            remedy = f"Make sure on {owner.host} that it is gone, then resume with force."
        super().__init__(
            f"Run {run_id!r} is taken: process {owner.pid} on {owner.host} {what}, "
            f"since {owner.since}.",
            remedy=remedy,
        )
        self.owner = owner


def this_process() -> Owner:
    """The owner that this process is; each call gives a token of its own."""
    pid = os.getpid()
    return Owner(
        uuid.uuid4().hex, pid, _started(pid) or 0, _boot(), _namespace(), socket.gethostname()
    )


def survey(owner: Owner) -> Survey:
    """Whether an owner's process lives, as far as can be seen from here."""
    if owner.boot != _boot():
        # Another boot of this machine is over; another machine's cannot be seen.
        return "dead" if owner.host == socket.gethostname() else "unknown"
    if owner.namespace != _namespace():
        return "unknown"
    return "alive" if _started(owner.pid) == owner.started else "dead"


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None when it is gone or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
