"""Copying and removing directory trees that a tool call may have shaped to hurt us."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from pathlib import Path

__all__ = ["copy_tree", "remove_tree"]


def remove_tree(root: Path) -> bool:
    """Remove ``root`` and everything below it; return whether it is gone. Blocking.

    Never follows a symbolic link, needs no recursion and no long path however deep the tree is:
    inner directories are moved up to the root before they are emptied. Nothing else may be using
    the tree. Absent already counts as gone.
    """
    try:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        with contextlib.suppress(OSError):
            root.unlink()
        return not root.is_symlink() and not root.exists()
    try:
        _empty_all(top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        root.rmdir()
    return not root.exists()


def _empty_all(top: int) -> None:
    # A name that the tree cannot hold already.
    token, moved = secrets.token_hex(8), 0
    pending = _empty(top)
    while pending:
        name = pending.pop()
        try:
            inner = _open_inner(name, top)
        except OSError:
            continue
        try:
            for child in _empty(inner):
                moved += 1
                place = f".{token}-{moved}"
                with contextlib.suppress(OSError):
                    os.rename(child, place, src_dir_fd=inner, dst_dir_fd=top)
                    pending.append(place)
        finally:
            os.close(inner)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)


def _open_inner(name: str, top: int) -> int:
    with contextlib.suppress(OSError):
        os.chmod(name, 0o700, dir_fd=top)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)


def _empty(directory: int) -> list[str]:
    """Unlink all but directories; return the names of those, each made movable."""
    inner: list[str] = []
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        with contextlib.suppress(OSError):
            if is_directory:
                inner.append(name)
                os.chmod(name, 0o700, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
    return inner


def copy_tree(source: Path, target: Path) -> None:
    """Copy the content of a directory into an existing one. Blocking.

    Symbolic links stay links, permission bits and times are kept, set-user-id bits are not.
    Sockets, pipes and devices are not copied: reading one could block for ever.

    Raises:
        OSError, shutil.Error: a file cannot be read or written.
    """
    shutil.copytree(
        source, target, symlinks=True, dirs_exist_ok=True, copy_function=_copy_file, ignore=_special
    )


def _special(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not _copyable(os.path.join(directory, name))]


def _copyable(path: str) -> bool:
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _copy_file(source: str, target: str) -> str:
    shutil.copyfile(source, target, follow_symlinks=False)
    if not os.path.islink(target):
        found = os.stat(source)
        os.chmod(target, stat.S_IMODE(found.st_mode) & 0o1777)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    return target
