"""One thread that waits for kernel events on many file descriptors and for timers, and calls back.

Sensors and pressure triggers share it: nothing here polls unless somebody asks for ``every``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock", "Watcher"]

Clock = Callable[[], float]
"""Seconds on a monotonic clock."""

log = logging.getLogger(__name__)

JOIN_SECONDS = 5.0


@dataclass(slots=True)
class _Timer:
    period: float
    due: float
    call: Callable[[], None]


class Watcher:
    """Calls back from its own thread when a descriptor is ready or a period has passed.

    A callback that raises is logged and stays registered: one broken source must not blind the
    others. All methods may be called from any thread, from callbacks too.
    """

    def __init__(self, clock: Clock = time.monotonic, name: str = "agentrt-watch") -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._calls: dict[int, Callable[[], None]] = {}
        self._timers: dict[int, _Timer] = {}
        self._next_timer = 0
        self._lock = threading.Lock()
        # Held while callbacks run: whoever removes one knows afterwards that it will not run again.
        self._running = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, fd: int, mask: int, call: Callable[[], None]) -> None:
        """Call ``call`` when ``fd`` is ready for ``mask`` (``select.EPOLLIN``, ``EPOLLPRI``)."""
        with self._lock:
            self._calls[fd] = call
        self._epoll.register(fd, mask)

    def remove(self, fd: int) -> None:
        """Forget ``fd``; on return its callback neither runs nor will run. The caller closes it."""
        with self._running, self._lock:
            if self._calls.pop(fd, None) is not None:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)

    def every(self, seconds: float, call: Callable[[], None]) -> int:
        """Call ``call`` every ``seconds``; return a receipt for ``cancel``."""
        with self._lock:
            self._next_timer += 1
            self._timers[self._next_timer] = _Timer(seconds, self._clock() + seconds, call)
            receipt = self._next_timer
        self._nudge()
        return receipt

    def cancel(self, receipt: int) -> None:
        """Stop the timer; on return its callback neither runs nor will run."""
        with self._running, self._lock:
            self._timers.pop(receipt, None)

    def close(self) -> None:
        """Stop the thread and forget everything; idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)
        self._epoll.close()
        os.close(self._wake)

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            ready = self._epoll.poll(self._timeout())
            if self._stop.is_set():
                return
            for fd, _ in ready:
                self._dispatch(fd)
            self._fire_timers()

    def _timeout(self) -> float | None:
        with self._lock:
            if not self._timers:
                return None
            return max(0.0, min(t.due for t in self._timers.values()) - self._clock())

    def _dispatch(self, fd: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            return
        with self._running:
            with self._lock:
                call = self._calls.get(fd)
            self._guarded(call)

    def _fire_timers(self) -> None:
        now = self._clock()
        with self._running:
            with self._lock:
                due = [timer for timer in self._timers.values() if timer.due <= now]
            for timer in due:
                # From now, not from when it was due: a late thread does not owe extra rounds.
                timer.due = now + timer.period
                self._guarded(timer.call)

    def _guarded(self, call: Callable[[], None] | None) -> None:
        if call is None:
            return
        try:
            call()
        except Exception:
            log.exception("a callback of %s failed", self._thread.name)
