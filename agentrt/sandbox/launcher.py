"""The launcher: a process that is in its cgroup before its first own instruction.

A small ``sh`` writes itself into the cgroup and then becomes the command. It is born by
``posix_spawn``: no Python code runs between fork and exec, so threads cannot deadlock it.
A status pipe on descriptor 9 tells whether the command's turn came; a word that only this call
knows marks what the shell says about a command that it could not start.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from agentrt.errors import ToolNotStarted
from agentrt.sandbox.descriptors import read_all, readable, write_all
from agentrt.sandbox.output import Capture
from agentrt.sandbox.supervise import ToolProcess

__all__ = [
    "LocalProcess",
    "die_with_parent",
    "inner_argv",
    "joined_argv",
    "joined_command",
    "new_word",
]

STATUS = 9
EXTRA = 8
STARTED = b"s"
POLL = 0.01

JOIN = """\
while [ "$1" != -- ]; do
  echo 0 > "$1" || { echo "agentrt: cannot join $1" >&2; exit 125; }
  shift
done
shift
"""
"""Arguments: the cgroup.procs files, ``--``, the command. It sets no variable: one of that name in
the command's environment would change."""
RANK = "echo {} 2>/dev/null > /proc/self/oom_score_adj;\n"

ENTER = 'cd -- "$1" || exit 126; shift; unset OLDPWD; printf s >&9; exec 9>&-; '
RUN_ARGV = 'exec "$@"'
RUN_SHELL = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; fi; exec /bin/sh -c "$1"'


def new_word() -> str:
    """A word that the command cannot know, for the name of the shell that starts it."""
    return f"agentrt-start-{secrets.token_hex(6)}"


def joined_argv(procs: Sequence[Path], argv: Sequence[str], oom_score: int = 0) -> list[str]:
    """``argv`` preceded by the shell that joins the cgroup files ``procs``.

    ``oom_score`` is added to the command's rank as a victim of the kernel; raising it is allowed
    to everybody.
    """
    script = _join(oom_score) + RUN_ARGV
    return ["/bin/sh", "-c", script, "agentrt-join", *map(str, procs), "--", *argv]


def _join(oom_score: int) -> str:
    return RANK.format(oom_score) + JOIN if oom_score else JOIN


def joined_command(
    procs: Sequence[Path],
    command: str | Sequence[str],
    cwd: str,
    word: str,
    oom_score: int = 0,
) -> list[str]:
    """``joined_argv`` of ``inner_argv`` in one shell, where nothing stands between the two."""
    run, words = (RUN_SHELL, [command]) if isinstance(command, str) else (RUN_ARGV, [*command])
    script = _join(oom_score) + ENTER + run
    return ["/bin/sh", "-c", script, word, *map(str, procs), "--", cwd, *words]


def inner_argv(
    command: str | Sequence[str], cwd: str, word: str, *, enter: str = ENTER
) -> list[str]:
    """What runs inside the sandbox: enter ``cwd``, report the start, become the command."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", enter + RUN_SHELL, word, cwd, command]
    return ["/bin/sh", "-c", enter + RUN_ARGV, word, cwd, *command]


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """``argv`` so that the kernel kills its first process when we die, where the tool exists."""
    setpriv = _setpriv()
    return [setpriv, "--pdeathsig", "KILL", "--", *argv] if setpriv else list(argv)


@functools.cache
def _setpriv() -> str | None:
    return shutil.which("setpriv", path="/usr/bin:/bin")


@dataclass(slots=True)
class _Ends:
    """Our ends and the child's ends of the pipes, all numbered 10 or higher."""

    ours: dict[str, int] = field(default_factory=dict)
    theirs: dict[int, int] = field(default_factory=dict)

    def pipe(self, name: str, target: int, *, child_writes: bool = True) -> None:
        reader, writer = (_lift(end) for end in os.pipe())
        mine, other = (reader, writer) if child_writes else (writer, reader)
        os.set_blocking(mine, False)
        self.ours[name], self.theirs[target] = mine, other

    def close_theirs(self) -> None:
        for descriptor in self.theirs.values():
            os.close(descriptor)
        self.theirs.clear()

    def close(self) -> None:
        self.close_theirs()
        for descriptor in self.ours.values():
            os.close(descriptor)
        self.ours.clear()


def _lift(descriptor: int) -> int:
    """Renumber to 10 or higher: the child's targets are below, so none overwrites a source."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)


class LocalProcess(ToolProcess):
    """A process of this machine, with its pipes. Make it with ``spawn``."""

    def __init__(self, pid: int, ends: _Ends) -> None:
        self.pid = pid
        self._ends = ends
        self._code: int | None = None
        self._started = b""
        self._pidfd: int | None = None
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(pid)

    @classmethod
    def spawn(
        cls, argv: Sequence[str], env: Mapping[str, str], *, stdin: bool, extra: bytes | None = None
    ) -> LocalProcess:
        """Start ``argv[0]`` (an absolute path) in a session of its own.

        ``extra`` is readable by the child as descriptor 8. Call it from the thread that will go on
        living: a process told to die with its parent watches that thread.

        Raises:
            ToolNotStarted: the kernel refused to start a process.
        """
        ends = _Ends()
        try:
            ends.pipe("stdout", 1)
            ends.pipe("stderr", 2)
            ends.pipe("status", STATUS)
            if stdin:
                ends.pipe("stdin", 0, child_writes=False)
            else:
                ends.theirs[0] = _lift(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            if extra is not None:
                ends.theirs[EXTRA] = _memory_file(extra)
            actions: list[Any] = [
                (os.POSIX_SPAWN_DUP2, source, target) for target, source in ends.theirs.items()
            ]
            pid = os.posix_spawn(
                argv[0],
                list(argv),
                dict(env),
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
            )
        except (OSError, ValueError) as error:
            ends.close()
            raise ToolNotStarted(
                f"Cannot start a process: {error}.",
                remedy="Check the command for NUL bytes and length, and the process limit.",
            ) from error
        ends.close_theirs()
        return cls(pid, ends)

    async def pump(self, stdout: Capture, stderr: Capture) -> None:
        """Move output until both streams end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all, self._ends.ours["stdout"], stdout.feed)
            tasks.start_soon(read_all, self._ends.ours["stderr"], stderr.feed)

    async def feed(self, stdin: bytes) -> None:
        """Write ``stdin`` and close it; stops quietly when the command does not read it."""
        await write_all(self._ends.ours["stdin"], stdin)
        os.close(self._ends.ours.pop("stdin"))

    async def wait(self) -> int:
        """Wait for the process itself, whatever its children do; 128 + n for signal n."""
        while self._code is None:
            if self._pidfd is not None:
                await anyio.wait_readable(self._pidfd)
            self._reap()
            if self._code is None:
                await anyio.sleep(POLL)
        return self._code

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self._code = 128 - code if code < 0 else code

    def kill(self) -> None:
        """SIGKILL the process itself, unless it has been waited for."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def started(self) -> bool:
        """Whether the command's turn came. Meaningful once the process has ended."""
        status = self._ends.ours.get("status")
        if status is not None and not self._started and readable(status):
            self._started = os.read(status, 1)
        return self._started == STARTED

    def close(self) -> None:
        """Close our ends of its pipes."""
        self._ends.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _memory_file(content: bytes) -> int:
    handle = _lift(os.memfd_create("agentrt", os.MFD_CLOEXEC))
    os.write(handle, content)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle
