"""Pages of KV in files: found again by content, after a restart too.

A page's name is a hash over the model's fingerprint and all tokens up to the page's end, so it is
found for exactly the prompts that it belongs to. A file is written beside its place and renamed,
and carries a checksum: one that is damaged is removed and counted, never read.

    file: magic, length of the payload (8 bytes), its BLAKE2b digest (16 bytes), the payload
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

from agentrt.errors import ConfigError

__all__ = ["FileStatistics", "FileStore", "page_names"]

_logger = logging.getLogger(__name__)

MAGIC = b"agentrtKV1"
_HEAD = struct.Struct(f">{len(MAGIC)}sQ16s")
SUFFIX, PART = ".kv", ".part"


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """``files`` and ``bytes`` there are now; the other counters are since the start.

    ``removed`` made room for newer ones; ``corrupt`` were damaged; ``refused`` could not be written
    or came faster than they could.
    """

    files: int = 0
    bytes: int = 0
    written: int = 0
    read: int = 0
    removed: int = 0
    corrupt: int = 0
    refused: int = 0


def page_names(fingerprint: bytes, keys: Sequence[Hashable]) -> list[str]:
    """Return a name for each page: of the model, its tokens and all tokens before them.

    ``keys`` are tuples of token ids, as ``TokenList`` gives them.
    """
    names: list[str] = []
    before = fingerprint
    for key in keys:
        tokens = array("q", cast("Iterable[int]", key)).tobytes()
        before = hashlib.blake2b(tokens, key=before, digest_size=20).digest()
        names.append(before.hex())
    return names


class FileStore:
    """Pages by name in one directory, at most ``limit`` bytes of them. Any thread may use it.

    Args:
        directory: made where it is missing; other files in it are left alone.
        limit: bytes of all page files together; the ones used longest ago go first.
        page_bytes: what the payload of every page is long.

    Raises:
        ConfigError: the directory cannot be used, or not even one page fits the limit.
    """

    def __init__(self, directory: Path, limit: int, page_bytes: int) -> None:
        if limit < page_bytes + _HEAD.size:
            raise ConfigError(
                f"{limit:,} bytes of files hold no page of {page_bytes:,}.",
                remedy="Give --kv-files-size more.",
            )
        self._directory = directory
        self._limit = limit
        self._page_bytes = page_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._counts = FileStatistics()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, size in sorted(self._there(), key=lambda entry: entry[1][0]):
                self._note(name, size[1])
        except OSError as error:
            raise ConfigError(
                f"Pages cannot be kept in {directory}: {error}.",
                remedy="Name a directory of --kv-files that can be written.",
            ) from error
        self._make_room(0)

    def _there(self) -> Iterator[tuple[str, tuple[float, int]]]:
        """Yield the page files by name, with time and size; remove what a crash left half-done."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(PART) and entry.name.startswith("."):
                Path(entry.path).unlink(missing_ok=True)
            elif entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
                facts = entry.stat(follow_symlinks=False)
                yield entry.name.removesuffix(SUFFIX), (facts.st_mtime, facts.st_size)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def statistics(self) -> FileStatistics:
        """Return the figures."""
        return self._counts

    def _note(self, name: str, size: int) -> None:
        with self._lock:
            old = self._sizes.pop(name, 0)
            self._sizes[name] = size
            held = self._counts.bytes + size - old
            self._counts = replace(self._counts, files=len(self._sizes), bytes=held)

    def _forget(self, name: str) -> None:
        with self._lock:
            size = self._sizes.pop(name, 0)
            held = self._counts.bytes - size
            self._counts = replace(self._counts, files=len(self._sizes), bytes=held)

    def _count(self, field: str, more: int = 1) -> None:
        with self._lock:
            self._counts = replace(self._counts, **{field: getattr(self._counts, field) + more})

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove the files used longest ago until ``size`` more bytes fit."""
        while self._sizes and self._counts.bytes + size > self._limit:
            name = next(iter(self._sizes))
            self._path(name).unlink(missing_ok=True)
            self._forget(name)
            self._count("removed")

    def write(self, name: str, payload: bytes) -> bool:
        """Keep a page; False, logged and counted, if it cannot be written."""
        if name in self._sizes:
            return True
        size = _HEAD.size + len(payload)
        try:
            self._make_room(size)
            with NamedTemporaryFile(
                dir=self._directory, prefix=f".{name}.", suffix=PART, delete=False
            ) as part:
                part.write(_HEAD.pack(MAGIC, len(payload), _digest(payload)))
                part.write(payload)
            Path(part.name).replace(self._path(name))
        except OSError as error:
            _logger.warning("A page of KV is not kept in %s: %s", self._directory, error)
            self._count("refused")
            return False
        self._note(name, size)
        self._count("written")
        return True

    def refuse(self) -> None:
        """Count a page that was not even tried."""
        self._count("refused")

    def read(self, name: str) -> bytes | None:
        """Return a page's payload; None if it is not there, or was damaged and is gone now."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            self._forget(name)
            return None
        except OSError as error:
            _logger.warning("A page of KV cannot be read: %s", error)
            self._forget(name)
            return None
        payload = self._checked(data)
        if payload is None:
            _logger.warning("%s is damaged: it is removed, and computed again.", path)
            path.unlink(missing_ok=True)
            self._forget(name)
            self._count("corrupt")
            return None
        self._note(name, len(data))
        self._count("read")
        return payload

    def _checked(self, data: bytes) -> bytes | None:
        """Return the payload of a whole file; None if anything about it is wrong."""
        if len(data) != _HEAD.size + self._page_bytes:
            return None
        magic, length, digest = _HEAD.unpack_from(data)
        payload = data[_HEAD.size :]
        whole = magic == MAGIC and length == len(payload) and digest == _digest(payload)
        return payload if whole else None


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
