"""A thread that goes before ordinary ones on the CPUs: a late look is a late decision.

Under a load that fills the CPUs, a thread that wakes every few milliseconds would wait for tens of
them, and what it watches has grown by megabytes meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["urgent"]

NICE = -15


@contextlib.contextmanager
def urgent() -> Iterator[str]:
    """Schedule this thread before ordinary ones while entered; yields how, in plain words.

    Real-time at the lowest priority where that is allowed, else less nice, else as it was. Nothing
    that the thread starts inherits it. Only for threads that sleep most of the time.
    """
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.ExitStack() as undo:
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
            undo.callback(os.sched_setscheduler, 0, before, parameters)
            how = "real-time"
        except OSError:
            how = "nice" if _be_less_nice(nice, undo) else "ordinary"
        yield how


def _be_less_nice(before: int, undo: contextlib.ExitStack) -> bool:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError:
        return False
    undo.callback(os.setpriority, os.PRIO_PROCESS, 0, before)
    return True
