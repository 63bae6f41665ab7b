"""Reading and writing files of a sandbox from outside, without being led out of it.

Every path component is opened relative to the one before and never through a symbolic link: links
are read and followed by hand, within the tree. A link swapped in at the wrong moment therefore
fails to open instead of leading elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from agentrt.errors import OutputLimitExceeded

__all__ = ["SandboxFiles"]

LINK_LIMIT = 40
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK = 1 << 20


class SandboxFiles:
    """Files below a few host directories, under the names that they have inside the sandbox.

    ``places`` maps a directory as the sandbox sees it to the host directory behind it; ``workdir``
    is the one that relative paths start at. Blocking; safe while tool calls change the tree.
    """

    def __init__(self, places: Mapping[str, Path], workdir: str) -> None:
        self._places = dict(places)
        self._workdir = workdir

    def read(self, path: str, limit: int) -> bytes:
        """Return a regular file's content.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: as named; PermissionError also
                for a path that leaves the sandbox and for anything but a regular file.
            OutputLimitExceeded: it is larger than ``limit`` bytes.
        """
        with self._opened(path, make=False) as handle:
            _check_regular(handle, path)
            out = bytearray()
            while data := os.read(handle, CHUNK):
                out += data
                if len(out) > limit:
                    raise OutputLimitExceeded(
                        f"{path} is larger than {limit} bytes.",
                        remedy="Raise the limit, or read a part of it with a command.",
                    )
            return bytes(out)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file's content, making missing parent directories. Errors as ``read``."""
        with self._opened(path, make=True) as handle:
            _check_regular(handle, path)
            os.ftruncate(handle, 0)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]

    @contextmanager
    def _opened(self, path: str, *, make: bool) -> Iterator[int]:
        walk = _Walk(self._places, path, make=make)
        try:
            handle = walk.open(_absolute(path, self._workdir))
        finally:
            walk.close()
        try:
            yield handle
        finally:
            os.close(handle)


def _absolute(path: str, workdir: str) -> str:
    if "\0" in path or not path:
        raise FileNotFoundError(errno.ENOENT, "not a path", path)
    return "/" + (path if path.startswith("/") else f"{workdir}/{path}").lstrip("/")


def _check_regular(handle: int, path: str) -> None:
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", path)
    if not stat.S_ISREG(mode):
        raise PermissionError(errno.EACCES, "not a regular file", path)


class _Walk:
    """The open directories from a place down to where the walk is."""

    def __init__(self, places: Mapping[str, Path], asked: str, *, make: bool) -> None:
        self._places = places
        self._asked = asked
        self._make = make
        self._stack: list[int] = []
        self._links = 0

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop())

    def open(self, absolute: str) -> int:
        """Open the file at a path as the sandbox sees it."""
        todo = self._enter(absolute)
        while True:
            name = todo.pop(0) if todo else "."
            if name == "..":
                self._up()
                continue
            target = self._link(name)
            if target is not None:
                todo = self._follow(target, todo)
            elif todo:
                self._down(name)
            else:
                return self._leaf(name)

    def _enter(self, absolute: str) -> list[str]:
        """Start at the place that holds ``absolute``; return the components below it."""
        self.close()
        parts = PurePosixPath(absolute).parts
        for inside, host in self._places.items():
            top = PurePosixPath(inside).parts
            if parts[: len(top)] == top:
                self._stack.append(os.open(host, DIRECTORY))
                return list(parts[len(top) :])
        raise self._refusal()

    def _refusal(self) -> PermissionError:
        inside = ", ".join(self._places)
        return PermissionError(errno.EACCES, f"leads out of the sandbox ({inside})", self._asked)

    def _up(self) -> None:
        # Our own stack, not the kernel's "..": a directory moved meanwhile cannot change it.
        if len(self._stack) == 1:
            raise self._refusal()
        os.close(self._stack.pop())

    def _link(self, name: str) -> str | None:
        with contextlib.suppress(OSError):
            return os.readlink(name, dir_fd=self._stack[-1])
        return None

    def _follow(self, target: str, rest: list[str]) -> list[str]:
        self._links += 1
        if self._links > LINK_LIMIT:
            raise PermissionError(errno.ELOOP, "too many symbolic links", self._asked)
        if target.startswith("/"):
            return self._enter(target) + rest
        return list(PurePosixPath(target).parts) + rest

    def _down(self, name: str) -> None:
        if self._make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._stack[-1])
        self._stack.append(self._try_open(name, DIRECTORY, 0))

    def _leaf(self, name: str) -> int:
        # Non-blocking: opening a pipe that nobody writes must not hang.
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        flags |= os.O_WRONLY | os.O_CREAT if self._make else os.O_RDONLY
        return self._try_open(name, flags, 0o644)

    def _try_open(self, name: str, flags: int, mode: int) -> int:
        try:
            return os.open(name, flags, mode, dir_fd=self._stack[-1])
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM):
                raise type(error)(error.errno, error.strerror, self._asked) from None
            if error.errno == errno.ENOTDIR:
                raise FileNotFoundError(errno.ENOENT, "no such file", self._asked) from None
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise PermissionError(error.errno, error.strerror, self._asked) from None
            raise
