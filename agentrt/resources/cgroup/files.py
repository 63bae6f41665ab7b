"""The cgroup file system, behind one small class so that tests can stand in for the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from pathlib import Path

__all__ = ["CgroupFiles", "KeptFile"]

JOIN_TRIAL_SECONDS = 10.0
PIECE = 1 << 16


class KeptFile:
    """A control file that stays open: one call of the kernel a look instead of three.

    Not thread-safe. Raises OSError where it cannot be opened for reading.
    """

    def __init__(self, path: str) -> None:
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # many of them may only be read
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> str | None:
        """Its text, or ``None`` once the cgroup is gone."""
        try:
            return os.pread(self._handle, PIECE, 0).decode(errors="replace")
        except OSError:
            return None

    def write(self, value: str) -> OSError | None:
        """Write ``value``; return what the kernel refused, if it did."""
        try:
            os.pwrite(self._handle, value.encode(), 0)
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        """Close it; once."""
        os.close(self._handle)


class CgroupFiles:
    """Operations on cgroup directories. A refused write is a value, a vanished file is ``None``."""

    def make(self, directory: Path) -> None:
        """Create a cgroup and its missing parents. Raises OSError as the kernel answers."""
        # Another run may remove the shared parent between our two mkdir calls: try again.
        for attempt in range(10):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                return
            except FileNotFoundError:
                if attempt == 9:
                    raise

    def read(self, path: Path | str) -> str | None:
        """The file's text, or ``None`` when it is not there or may not be read."""
        # A tool call reads some twenty of these: text files and their buffers would cost a third.
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # The kernel gives what a file has to say in one piece, unless it is long.
            text = piece = os.read(handle, PIECE)
            while len(piece) > PIECE // 2:
                piece = os.read(handle, PIECE)
                text += piece
        except OSError:
            return None
        finally:
            os.close(handle)
        return text.decode(errors="replace")

    def keep(self, path: str) -> KeptFile | None:
        """Open a short control file to look at often; ``None`` when that is not possible."""
        try:
            return KeptFile(path)
        except OSError:
            return None

    def write(self, path: Path | str, value: str) -> OSError | None:
        """Write into an existing control file; return what the kernel refused, if it did."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            return error
        try:
            os.write(handle, value.encode())
        except OSError as error:
            return error
        finally:
            os.close(handle)
        return None

    def can_join(self, directory: Path) -> OSError | None:
        """Try it with a short process: permission to write the file does not say enough."""
        trial = ["/bin/sh", "-c", 'echo 0 > "$1"', "sh", str(directory / "cgroup.procs")]
        try:
            done = subprocess.run(
                trial, capture_output=True, timeout=JOIN_TRIAL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return OSError(errno.EIO, f"trial process: {error}")
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip()
        return PermissionError(errno.EPERM, said or "a process could not join", str(directory))

    def pids(self, directory: Path) -> list[int]:
        """Process ids in a cgroup and everything below it."""
        if self._has_no_children(directory):
            return self._own_pids(directory)
        out: list[int] = []
        for inner, _, _ in os.walk(directory, followlinks=False):
            out += self._own_pids(Path(inner))
        return out

    def _own_pids(self, directory: Path) -> list[int]:
        text = self.read(f"{directory}/cgroup.procs") or ""
        # 0 is a process of another pid namespace: it has no number that we could signal.
        return [int(word) for word in text.split() if word != "0"]

    @staticmethod
    def _has_no_children(directory: Path) -> bool:
        """Whether it is certain, without looking through it: a child links to its parent."""
        try:
            return os.stat(directory).st_nlink == 2
        except OSError:
            return False

    def kill(self, pids: list[int]) -> None:
        """SIGKILL each process that still exists; those that we may not signal are left."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, directory: Path) -> bool:
        """Remove a cgroup and its children, deepest first; return whether it is gone."""
        if self.remove_one(directory):
            return True
        for inner, _, _ in os.walk(directory, topdown=False, followlinks=False):
            if not self.remove_one(Path(inner)):
                return False
        return not directory.exists()

    def remove_one(self, directory: Path) -> bool:
        """Remove one cgroup; ``False`` while it holds processes or children, or is not ours."""
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY, errno.EPERM, errno.EACCES):
                return False
            raise
        return True
