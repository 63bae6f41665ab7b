"""Runs on several processes, or in this one: simulations share nothing and may go side by side."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any, Protocol, TypeAlias, TypeVar

from agentrt.errors import ConfigError

__all__ = ["Jobs", "Stop", "finished_jobs", "open_jobs"]

T = TypeVar("T")
Stop: TypeAlias = Callable[[], bool]
"""Asked all the time by a job: whether it should end."""

POLL_EVERY = 64
"""Questions between two looks at the flag that processes share: a look costs a lock."""

POLL_SECONDS = 0.2

_flag: Event | None = None
"""A worker's view of the parent's wish to stop: a process inherits it, and cannot be sent it."""


class Jobs(Protocol):
    """Room for ``width`` jobs at a time."""

    width: int

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Start ``job(*arguments, stop)``. All of it is pickled if it runs in another process."""
        ...

    def stop(self) -> None:
        """Ask the jobs under way to end soon."""
        ...


class _Here:
    """Runs a job at once, in this process."""

    width = 1

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(job(*arguments, self._stop))
        return future

    def stop(self) -> None:
        """Nothing runs between two calls."""


class _Processes:
    """Runs jobs on processes of their own."""

    def __init__(self, pool: ProcessPoolExecutor, width: int, flag: Event) -> None:
        self._pool = pool
        self._flag = flag
        self.width = width

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.submit(_with_flag, job, arguments)

    def stop(self) -> None:
        self._flag.set()


def _begin_worker(flag: Event) -> None:
    """Take the flag; leave Ctrl-C, which reaches the whole terminal group, to the parent."""
    global _flag
    _flag = flag
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _with_flag(job: Callable[..., T], arguments: Sequence[Any]) -> T:
    flag, calls = _flag, itertools.count()
    return job(
        *arguments, lambda: flag is not None and next(calls) % POLL_EVERY == 0 and flag.is_set()
    )


@contextmanager
def open_jobs(count: int, stop: Stop) -> Iterator[Jobs]:
    """Yield room for ``count`` jobs side by side; one: in this process, asking ``stop``.

    Raises:
        ConfigError: ``count`` is below 1.
    """
    if count < 1:
        raise ConfigError(f"--jobs is {count}.", remedy="Give --jobs 1 or more.")
    if count == 1:
        yield _Here(stop)
        return
    context = multiprocessing.get_context("spawn")
    flag = context.Event()
    pool = ProcessPoolExecutor(count, context, _begin_worker, (flag,))
    try:
        yield _Processes(pool, count, flag)
    except BaseException:
        flag.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def finished_jobs(jobs: Jobs, running: Sequence[Future[T]], stop: Stop) -> set[Future[T]]:
    """Wait until a job has ended and return those that have; pass on ``stop`` meanwhile."""
    while True:
        done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
        if stop():
            jobs.stop()
        if done:
            return done
