"""The host tier: a second pool of pages in host memory, and the thread that copies there and back.

The host's layout is ``[host pages, layers, 2, ...]``: a page is one stretch of memory, so a run of
pages is one copy. On CUDA the memory is pinned and copies run on a stream of their own, which
first waits for what the engine had launched when the transfer was planned.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch

from agentrt.engine.tiers.base import CopyDone, PageMover, TierStatistics
from agentrt.engine.tiers.groups import CopyGroup, copy_groups
from agentrt.errors import ConfigError
from agentrt.scheduling.plan import Transfer

__all__ = ["HostTier", "page_bytes"]

_logger = logging.getLogger(__name__)

_GROUP_BYTES = 64 << 20
"""Most bytes of one copy: what a gathering on the device takes beside the pool."""

Pace: TypeAlias = Callable[[Transfer], None]
_Job: TypeAlias = tuple[Transfer, Any]


def page_bytes(pool: Sequence[torch.Tensor]) -> int:
    """Return the bytes that one page takes in ``pool``, tensors ``[layers, 2, pages, ...]``."""
    return sum(part[:, :, 0].numel() * part.element_size() for part in pool)


class _Copier(Protocol):
    """Copies one group; ``mark`` is taken where a transfer is planned and handed to its copies."""

    straight: bool

    def mark(self) -> Any: ...
    def store(self, group: CopyGroup) -> None: ...
    def load(self, group: CopyGroup) -> None: ...
    def begin(self, mark: Any) -> None: ...
    def finish(self) -> None: ...


class HostTier(PageMover):
    """A :class:`~agentrt.engine.tiers.base.PageMover` between a pool of pages and host memory.

    Args:
        pool: the pool's tensors, each ``[layers, 2, pages, ...]``, contiguous.
        host_pages: pages of host memory, taken at once.
        clock: seconds, for the counters.
        pace: called in the copying thread before each transfer; tests make it slow.

    Raises:
        ConfigError: the memory cannot be had.
    """

    def __init__(
        self,
        pool: Sequence[torch.Tensor],
        host_pages: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        pace: Pace | None = None,
    ) -> None:
        self._page_bytes = page_bytes(pool)
        self._most = max(1, _GROUP_BYTES // self._page_bytes)
        self.host = [_host_tensor(part, host_pages) for part in pool]
        cuda = pool[0].device.type == "cuda"
        self._copier: _Copier = _CudaCopier(pool, self.host) if cuda else _Memory(pool, self.host)
        self._clock = clock
        self._pace = pace
        self._wake: Callable[[], None] = lambda: None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        # Shared between the two threads, under the lock:
        self._lock = threading.Lock()
        self._done: list[int] = []
        self._failed: list[int] = []
        self._counts = TierStatistics(host_pages)

    @property
    def pages(self) -> int:
        """How many pages the host holds."""
        return self._counts.host_pages

    # --- the engine's side

    def start(self, wake: Callable[[], None]) -> None:
        """Start the copying thread. See ``PageMover.start``."""
        self._wake = wake
        self._thread = threading.Thread(target=self._run, name="agentrt-copies", daemon=True)
        self._thread.start()

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Queue copies. See ``PageMover.begin``."""
        for transfer in transfers:
            self._jobs.put((transfer, self._copier.mark()))

    def copy_now(self, transfer: Transfer) -> None:
        """Carry out a transfer in the calling thread; only before ``start``."""
        self._copy(transfer, self._copier.mark())

    def take_over(self) -> CopyDone:
        """Return what is over. See ``PageMover.take_over``."""
        if not self._done and not self._failed:
            return _NOTHING
        with self._lock:
            over = CopyDone(tuple(self._done), tuple(self._failed))
            self._done, self._failed = [], []
        return over

    def statistics(self) -> TierStatistics:
        """Return the counters."""
        return self._counts

    def close(self) -> None:
        """End the thread after the copy under way. See ``PageMover.close``."""
        self._closing = True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    # --- the copying thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            transfer, mark = job
            try:
                self._copy(transfer, mark)
            except Exception:
                _logger.exception("Transfer %d (%s) failed", transfer.ticket, transfer.kind)
                self._over(transfer, failed=True)
            else:
                self._over(transfer, failed=False)
            self._wake()

    def _copy(self, transfer: Transfer, mark: Any) -> None:
        """Carry out one transfer; when this returns, its target can be read."""
        if self._pace is not None:
            self._pace(transfer)
        started = self._clock()
        copier = self._copier
        groups = copy_groups(
            transfer.pages, transfer.host_pages, most=self._most, straight=copier.straight
        )
        copier.begin(mark)
        copy = copier.store if transfer.kind == "store" else copier.load
        for group in groups:
            copy(group)
        copier.finish()
        self._count(transfer, len(groups), self._clock() - started)

    def _count(self, transfer: Transfer, copies: int, seconds: float) -> None:
        old, pages = self._counts, len(transfer.pages)
        moved = pages * self._page_bytes
        new = replace(old, copies=old.copies + copies, transfers=old.transfers + 1)
        if transfer.kind == "store":
            self._counts = replace(
                new,
                stored_pages=old.stored_pages + pages,
                stored_bytes=old.stored_bytes + moved,
                stored_seconds=old.stored_seconds + seconds,
            )
        else:
            self._counts = replace(
                new,
                loaded_pages=old.loaded_pages + pages,
                loaded_bytes=old.loaded_bytes + moved,
                loaded_seconds=old.loaded_seconds + seconds,
            )

    def _over(self, transfer: Transfer, *, failed: bool) -> None:
        with self._lock:
            (self._failed if failed else self._done).append(transfer.ticket)
        if failed:
            self._counts = replace(self._counts, failed=self._counts.failed + 1)


_NOTHING = CopyDone()


def _host_tensor(part: torch.Tensor, host_pages: int) -> torch.Tensor:
    """Return the host's side of one of the pool's tensors, ``[host pages, layers, 2, ...]``.

    Raises:
        ConfigError: the memory cannot be had.
    """
    shape = (host_pages, *part.shape[:2], *part.shape[3:])
    try:
        # Zeros, not empty: touching the memory here makes a tier that does not fit fail at start.
        return torch.zeros(shape, dtype=part.dtype, pin_memory=part.device.type == "cuda")
    except RuntimeError as error:
        raise ConfigError(
            f"A host tier of {host_pages} pages cannot be had: {str(error).splitlines()[0]}.",
            remedy="Ask for a smaller --host-kv.",
        ) from error


class _Memory(_Copier):
    """Copies within host memory, through numpy: no parallel loop, and no lock while it copies.

    torch would copy in parallel with threads of its own, beside those that run the step.
    """

    straight = True

    def __init__(self, pool: Sequence[torch.Tensor], host: Sequence[torch.Tensor]) -> None:
        self._parts = [
            (_raw(part).flatten(0, 1).numpy(), _raw(other).flatten(1, 2).numpy())
            for part, other in zip(pool, host, strict=True)
        ]

    def mark(self) -> None:
        """Nothing runs late on a CPU."""

    def begin(self, mark: Any) -> None:
        """Nothing to wait for."""

    def store(self, group: CopyGroup) -> None:
        """Copy a run of pages to the host."""
        first, count = group.pages[0], len(group.pages)
        for pool, host in self._parts:
            host[group.host : group.host + count] = pool[:, first : first + count].swapaxes(0, 1)

    def load(self, group: CopyGroup) -> None:
        """Copy a run of pages from the host."""
        first, count = group.pages[0], len(group.pages)
        for pool, host in self._parts:
            pool[:, first : first + count] = host[group.host : group.host + count].swapaxes(0, 1)

    def finish(self) -> None:
        """What was copied is there."""


def _raw(part: torch.Tensor) -> torch.Tensor:
    """Return ``[a, b, c, bytes]`` of ``[a, b, c, ...]``: numpy knows no bfloat16."""
    return part.flatten(3).view(torch.uint8)


class _CudaCopier(_Copier):
    """Copies on a stream of its own; pool pages are gathered on the device into a run."""

    straight = False

    def __init__(self, pool: Sequence[torch.Tensor], host: Sequence[torch.Tensor]) -> None:
        self._parts = list(zip(pool, host, strict=True))
        self._device = pool[0].device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event:
        """Return a mark behind all that the engine's thread has launched so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def begin(self, mark: Any) -> None:
        """Let the stream wait for the mark: pages are read when written, written when read."""
        self._stream.wait_event(mark)

    def store(self, group: CopyGroup) -> None:
        """Gather pages, then copy them to the host in one piece."""
        count = len(group.pages)
        with torch.cuda.stream(self._stream):
            for pool, host in self._parts:
                gathered = pool.index_select(2, self._index(group)).movedim(2, 0).contiguous()
                host[group.host : group.host + count].copy_(gathered, non_blocking=True)

    def load(self, group: CopyGroup) -> None:
        """Copy pages from the host in one piece, then put them into their places."""
        count = len(group.pages)
        with torch.cuda.stream(self._stream):
            for pool, host in self._parts:
                brought = host[group.host : group.host + count].to(self._device, non_blocking=True)
                pool.index_copy_(2, self._index(group), brought.movedim(0, 2))

    def _index(self, group: CopyGroup) -> torch.Tensor:
        return torch.tensor(group.pages, dtype=torch.int64, device=self._device)

    def finish(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()
