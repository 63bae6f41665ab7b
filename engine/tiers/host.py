"""The host tier: a second pool of pages in host memory, and the thread that copies there and back.

The host's layout is ``[host pages, layers, 2, ...]``: a page is one stretch of memory, so a run of
pages is one copy. It lies in huge pages where there are any. On CUDA it is pinned and copies run on
a stream of their own, which first waits for what the engine had launched when the transfer was
planned.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from agentrt.engine.tiers.archive import Archive
from agentrt.engine.tiers.base import CopyDone, PageMover, TierStatistics
from agentrt.engine.tiers.copiers import Copier, CudaCopier, MemoryCopier, raw
from agentrt.engine.tiers.groups import copy_groups
from agentrt.engine.tiers.memory import HostMemory
from agentrt.errors import InternalError
from agentrt.scheduling.plan import Transfer

__all__ = ["HostTier", "page_bytes"]

_logger = logging.getLogger(__name__)

_GROUP_BYTES = 64 << 20
"""Most bytes of one copy: what a gathering on the device takes beside the pool."""

SAVE_SECONDS = 20.0
"""How long pages are written to files at the end."""

Runs: TypeAlias = Callable[[], Iterable[tuple[Sequence[Hashable], Sequence[int]]]]
Pace: TypeAlias = Callable[[Transfer], None]
_Job: TypeAlias = tuple[int, Transfer, Any]


def page_bytes(pool: Sequence[torch.Tensor]) -> int:
    """Return the bytes that one page takes in ``pool``, tensors ``[layers, 2, pages, ...]``."""
    return sum(part[:, :, 0].numel() * part.element_size() for part in pool)


class HostTier(PageMover):
    """A :class:`~agentrt.engine.tiers.base.PageMover` between a pool of pages and host memory.

    Args:
        pool: the pool's tensors, each ``[layers, 2, pages, ...]``, contiguous.
        host_pages: pages of host memory, taken at once.
        clock: seconds, for the counters.
        renew: returns the pool's tensors after a restart, which makes them anew; None: they stay.
        pace: called in the copying thread before each transfer; tests make it slow.
        archive: files for what has no room in host memory; started and closed with this.

    Raises:
        ConfigError: the memory cannot be had.
    """

    def __init__(
        self,
        pool: Sequence[torch.Tensor],
        host_pages: int,
        *,
        renew: Callable[[], Sequence[torch.Tensor]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pace: Pace | None = None,
        archive: Archive | None = None,
    ) -> None:
        self._page_bytes = page_bytes(pool)
        self._most = max(1, _GROUP_BYTES // self._page_bytes)
        self._memory, self.host = _host_tensors(pool, host_pages)
        self._renew = renew
        self._copier: Copier | None = self._new_copier(pool)
        self._clock = clock
        self._pace = pace
        self.archive = archive
        self._raw = [raw(part).numpy().reshape(host_pages, -1) for part in self.host]
        self._runs: Runs = lambda: ()
        self._wake: Callable[[], None] = lambda: None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        # Raised by ``halt``: what was begun before it is neither copied nor told of. The copying
        # thread and the archive's hold ``_busy`` while they write.
        self._generation = 0
        self._busy = threading.Lock()
        # Shared between the two threads, under the lock:
        self._lock = threading.Lock()
        self._done: list[int] = []
        self._failed: list[int] = []
        self._counts = TierStatistics(host_pages)

    def _new_copier(self, pool: Sequence[torch.Tensor]) -> Copier:
        make = CudaCopier if pool[0].device.type == "cuda" else MemoryCopier
        return make(pool, self.host)

    @property
    def pages(self) -> int:
        """How many pages the host holds."""
        return self._counts.host_pages

    # --- the engine's side

    def start(self, wake: Callable[[], None]) -> None:
        """Start the copying thread. See ``PageMover.start``."""
        self._wake = wake
        if self.archive is not None:
            self.archive.start()
        self._thread = threading.Thread(target=self._run, name="agentrt-copies", daemon=True)
        self._thread.start()

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Queue copies. See ``PageMover.begin``."""
        now = self._generation
        for transfer in transfers:
            if transfer.kind != "fetch":
                self._jobs.put((now, transfer, self._ready().mark()))
            elif self.archive is not None:
                put, over = partial(self._put, now), partial(self._fetched, now)
                self.archive.bring(transfer, put, over)
            else:
                raise InternalError(f"Transfer {transfer.ticket} fetches, but there are no files.")

    def _ready(self) -> Copier:
        if self._copier is None:
            raise InternalError("Pages are to be copied, but the tier was halted.")
        return self._copier

    def halt(self) -> None:
        """Give up all copies, and the pool's tensors. See ``PageMover.halt``."""
        self._generation += 1
        with self._busy:
            if self._renew is not None:
                self._copier = None
        with self._lock:
            self._done, self._failed = [], []

    def resume(self) -> None:
        """Go on with the pool as it is now. See ``PageMover.resume``."""
        if self._renew is not None:
            self._copier = self._new_copier(self._renew())

    def copy_now(self, transfer: Transfer) -> None:
        """Carry out a transfer in the calling thread; only before ``start``."""
        self._copy(transfer, self._ready().mark())

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
        files = None if self.archive is None else self.archive.statistics()
        return replace(self._counts, files=files)

    def close(self, *, save: bool = False) -> None:
        """End the thread after the copy under way. See ``PageMover.close``."""
        first, self._closing = not self._closing, True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
        if self.archive is not None and first:
            self.archive.close(SAVE_SECONDS)
            if save:
                self._save(self.archive)
        self._memory.release()

    # --- pages in files

    def keep_in_files(self, runs: Runs) -> None:
        """Say where to find what host memory holds when this is closed: keys and pages."""
        self._runs = runs

    def evicted(self, keys: Sequence[Hashable], pages: Sequence[int]) -> None:
        """Pages of host memory are about to be overwritten: have them written to files.

        ``keys`` begin with the first page; ``pages`` are those of the last of them.
        """
        if self.archive is not None:
            names = self.archive.names(keys)[-len(pages) :]
            sound = [
                (name, page) for name, page in zip(names, pages, strict=True) if self._sound(page)
            ]
            self.archive.keep(
                [name for name, _ in sound], [self._payload(page) for _, page in sound]
            )

    def _save(self, archive: Archive) -> None:
        until, left = self._clock() + SAVE_SECONDS, 0
        for keys, pages in self._runs():
            if self._clock() < until:
                names = archive.names(keys)[-len(pages) :]
                for name, page in zip(names, pages, strict=True):
                    if self._sound(page):
                        archive.save(name, partial(self._payload, page))
            else:
                left += len(pages)
        if left:
            _logger.warning("%d pages were not written in %.0f s: not kept.", left, SAVE_SECONDS)

    def _sound(self, page: int) -> bool:
        """Say whether a page is fit to outlive us: a broken turn must not break later ones."""
        parts = [part[page] for part in self.host if part.is_floating_point()]
        return all(bool(part.float().isfinite().all()) for part in parts)

    def _payload(self, page: int) -> bytes:
        return b"".join(part[page].tobytes() for part in self._raw)

    def _put(self, generation: int, page: int, payload: bytes) -> None:
        with self._busy:
            if generation != self._generation:
                return
            start = 0
            for part in self._raw:
                end = start + part.shape[1]
                part[page] = np.frombuffer(payload[start:end], np.uint8)
                start = end

    def _fetched(self, generation: int, transfer: Transfer, good: bool) -> None:
        with self._busy:
            if generation == self._generation:
                self._over(transfer, failed=not good)
        self._wake()

    # --- the copying thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            generation, transfer, mark = job
            if self._pace is not None:
                self._pace(transfer)
            with self._busy:
                if generation == self._generation:
                    self._try_copy(transfer, mark)
            self._wake()

    def _try_copy(self, transfer: Transfer, mark: Any) -> None:
        try:
            self._copy(transfer, mark)
        except Exception:
            _logger.exception("Transfer %d (%s) failed", transfer.ticket, transfer.kind)
            self._over(transfer, failed=True)
        else:
            self._over(transfer, failed=False)

    def _copy(self, transfer: Transfer, mark: Any) -> None:
        """Carry out one transfer; when this returns, its target can be read."""
        started = self._clock()
        copier = self._ready()
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
        with self._lock:
            self._counts = self._counted(transfer, copies, seconds)

    def _counted(self, transfer: Transfer, copies: int, seconds: float) -> TierStatistics:
        old, pages = self._counts, len(transfer.pages)
        moved = pages * self._page_bytes
        new = replace(old, copies=old.copies + copies, transfers=old.transfers + 1)
        if transfer.kind == "store":
            return replace(
                new,
                stored_pages=old.stored_pages + pages,
                stored_bytes=old.stored_bytes + moved,
                stored_seconds=old.stored_seconds + seconds,
            )
        return replace(
            new,
            loaded_pages=old.loaded_pages + pages,
            loaded_bytes=old.loaded_bytes + moved,
            loaded_seconds=old.loaded_seconds + seconds,
        )

    def _over(self, transfer: Transfer, *, failed: bool) -> None:
        with self._lock:
            (self._failed if failed else self._done).append(transfer.ticket)
            self._counts = replace(self._counts, failed=self._counts.failed + failed)


_NOTHING = CopyDone()


def _host_tensors(
    pool: Sequence[torch.Tensor], host_pages: int
) -> tuple[HostMemory, list[torch.Tensor]]:
    """Return the host's side of the pool's tensors, each ``[host pages, layers, 2, ...]``.

    Raises:
        ConfigError: the memory cannot be had.
    """
    shapes = [(host_pages, *part.shape[:2], *part.shape[3:]) for part in pool]
    sizes = [
        math.prod(shape) * part.element_size() for shape, part in zip(shapes, pool, strict=True)
    ]
    memory = HostMemory(sizes, pool[0].device)
    tensors = [
        raw_bytes.view(part.dtype).view(shape)
        for raw_bytes, part, shape in zip(memory.parts, pool, shapes, strict=True)
    ]
    return memory, tensors
