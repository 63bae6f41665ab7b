"""The engine's threads: what this process may use, and a backend that adapts to what steps show."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agentrt.engine.backend import StepHandle, TurnBackend
from agentrt.engine.observed import ForwardingBackend
from agentrt.engine.tuner import ThreadTuner
from agentrt.scheduling.plan import StepPlan, StepResult

__all__ = ["PacedBackend", "allowed_threads", "cpu_quota"]

_logger = logging.getLogger(__name__)


def allowed_threads(proc: Path = Path("/proc/self"), mounts: Path = Path("/proc/mounts")) -> int:
    """Return how many threads can run at once here: the affinity mask within the cgroup's quota."""
    usable = len(os.sched_getaffinity(0))
    quota = cpu_quota(proc, mounts)
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def cpu_quota(proc: Path = Path("/proc/self"), mounts: Path = Path("/proc/mounts")) -> float | None:
    """Return the least CPU quota, in cores, of this process's cgroup and those above it.

    Both versions are read: ``cpu.max``, and ``cpu.cfs_quota_us`` over ``cpu.cfs_period_us``. None
    where there is none, or where cgroups cannot be read.
    """
    quotas = []
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        kind = "cgroup" if controllers else "cgroup2"
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in _mounted(_lines(mounts), kind):
            quotas += _along(root, path, _quota_v1 if controllers else _quota_v2)
    return min(quotas, default=None)


def _mounted(mounts: Sequence[str], kind: str) -> list[Path]:
    """Return where cgroups of one kind are mounted; of version 1, those with the cpu controller."""
    found = []
    for line in mounts:
        _, where, type_, options, *_ = line.split(" ")
        if type_ == kind and (kind == "cgroup2" or "cpu" in options.split(",")):
            found.append(Path(where))
    return found


def _along(root: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Read a cgroup and all above it; in a container, what is mounted may begin at our own."""
    group = root / path.lstrip("/")
    group = group if group.is_dir() else root
    chain = [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return [quota for quota in map(read, chain) if quota is not None]


def _quota_v2(group: Path) -> float | None:
    words = (_lines(group / "cpu.max") or ["max"])[0].split()
    return None if words[0] == "max" else int(words[0]) / int(words[1])


def _quota_v1(group: Path) -> float | None:
    quota, period = _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # no such controller, or not ours to read: no quota is known


class PacedBackend(ForwardingBackend):
    """Runs ``inner`` on as many threads as the tuner says; all calls come from one thread."""

    def __init__(self, inner: TurnBackend, tuner: ThreadTuner, clock: Callable[[], float]) -> None:
        super().__init__(inner)
        self._tuner = tuner
        self._clock = clock
        self._set = 0
        self._spent: deque[float] = deque()
        """Seconds that launching took, of each step that is under way."""

    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice of ``plan``. See ``TurnBackend.launch``."""
        self._apply(self._tuner.threads)
        start = self._clock()
        handle = self._inner.launch(plan)
        self._spent.append(self._clock() - start)
        return handle

    def wait(self, handle: StepHandle) -> StepResult:
        """Block until the samples are known. See ``TurnBackend.wait``."""
        spent, start = self._spent.popleft(), self._clock()
        result = self._inner.wait(handle)
        spent += self._clock() - start
        context = sum(piece.start + piece.count for piece in handle.plan.slices)
        self._tuner.observe(handle.plan.tokens, context, spent)
        return result

    def _apply(self, threads: int) -> None:
        # The number belongs to the calling thread, so it is set here and not where we are made.
        if threads != self._set:
            torch.set_num_threads(threads)
            _logger.debug("Steps run on %d threads.", threads)
            self._set = threads
