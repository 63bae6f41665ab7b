"""The file tier: which pages files hold, and a thread that reads and writes them.

Pages go there when the host tier evicts them, and at the end; they come back when a turn is
submitted whose prompt they belong to.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from agentrt.engine.tiers.files import FileStatistics, FileStore, page_names
from agentrt.scheduling.plan import Transfer

__all__ = ["Archive", "weights_fingerprint"]

_logger = logging.getLogger(__name__)

BACKLOG_BYTES = 256 << 20
"""Payloads that may wait to be written; what comes beyond that is not kept."""
SAMPLES, SAMPLE_BYTES = 16, 65_536

Put: TypeAlias = Callable[[int, bytes], None]
Over: TypeAlias = Callable[[Transfer, bool], None]


def weights_fingerprint(directory: Path, settings: str) -> bytes:
    """Return a hash of a model's files and of ``settings``, 32 bytes.

    Of weight files it takes the size, the beginning and parts spread over them: another training
    changes them everywhere.
    """
    told = hashlib.blake2b(settings.encode(), digest_size=32)
    for file in sorted(directory.glob("*")):
        if file.suffix not in (".json", ".safetensors") or not file.is_file():
            continue
        size = file.stat().st_size
        told.update(f"{file.name}:{size};".encode())
        with file.open("rb") as content:
            for part in range(SAMPLES):
                content.seek(part * size // SAMPLES)
                told.update(content.read(SAMPLE_BYTES))
    return told.digest()


class Archive:
    """Pages in files, for a scheduler to ask about and a host tier to move.

    Args:
        store: the files.
        fingerprint: of the model and all that its KV depends on.
    """

    def __init__(self, store: FileStore, fingerprint: bytes) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._thread: threading.Thread | None = None
        # Shared with the thread, under the condition's lock:
        self._changed = threading.Condition()
        self._reads: deque[tuple[Transfer, Put, Over]] = deque()
        self._writes: deque[tuple[str, bytes]] = deque()
        self._backlog = 0
        self._closing = False

    # --- the scheduler's side

    def names(self, keys: Sequence[Hashable]) -> Sequence[str]:
        """Return the name of each page."""
        return page_names(self._fingerprint, keys)

    def found(self, names: Sequence[str], start: int) -> int:
        """Return how many leading pages are there if the first ``start`` are taken for granted."""
        end = start
        while end < len(names) and names[end] in self._store:
            end += 1
        return end

    # --- the host tier's side

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="agentrt-files", daemon=True)
        self._thread.start()

    def keep(self, names: Sequence[str], payloads: Sequence[bytes]) -> None:
        """Queue pages to be written. Never waits: what is too much is not kept, and counted."""
        with self._changed:
            for name, payload in zip(names, payloads, strict=True):
                if name in self._store:
                    continue
                if self._backlog + len(payload) > BACKLOG_BYTES:
                    self._store.refuse()
                    continue
                self._writes.append((name, payload))
                self._backlog += len(payload)
            self._changed.notify()

    def bring(self, transfer: Transfer, put: Put, over: Over) -> None:
        """Queue a read: ``put`` is called with each page, then ``over`` with whether all came."""
        with self._changed:
            self._reads.append((transfer, put, over))
            self._changed.notify()

    def statistics(self) -> FileStatistics:
        """Return the figures of the files."""
        return self._store.statistics()

    def close(self, seconds: float) -> None:
        """Write what is queued, for so long at most; what is left over is not kept."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(seconds)
        with self._changed:
            left = len(self._writes)
            self._writes.clear()
        self._thread.join()
        if left:
            _logger.warning("%d pages were not written in %.0f s: not kept.", left, seconds)

    def save(self, name: str, payload: Callable[[], bytes]) -> None:
        """Write a page at once, if it is missing; only after ``close``."""
        if name not in self._store:
            self._store.write(name, payload())

    # --- the thread

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Callable[[], object] | None:
        """Return what to do next, reads first; None at the end."""
        with self._changed:
            while not (self._reads or self._writes):
                if self._closing:
                    return None
                self._changed.wait()
            if self._reads:
                return partial(self._read, *self._reads.popleft())
            name, payload = self._writes.popleft()
            self._backlog -= len(payload)
            return partial(self._store.write, name, payload)

    def _read(self, transfer: Transfer, put: Put, over: Over) -> None:
        good = True
        for page, name in zip(transfer.host_pages, transfer.names, strict=True):
            payload = self._store.read(name)
            if payload is None:
                good = False
                break
            put(page, payload)
        over(transfer, good)
