"""The gate of a Docker exec: it stops itself, is moved into its cgroup, and only then goes on.

The engine has no way to start an exec in a cgroup of its choice. So what it starts is a shell that
stops itself before it does anything; we find it on the host, move it, check that it is still the
same process, and let it continue into the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio

from agentrt.errors import ToolNotStarted

__all__ = ["ENTER_STOPPED", "GATE_SECONDS", "Gated", "pass_gate"]

GATE_SECONDS = 20.0
# Descriptor 9 does not exist in an exec: the start is reported by nothing but the marked word.
ENTER_STOPPED = 'kill -STOP $$; cd -- "$1" || exit 126; shift; unset OLDPWD; '
REMEDY = "Use an image whose /bin/sh is an ordinary shell; see: agentrt sandbox check"


class Gated:
    """A process of a container, held by a descriptor so that its number cannot be reused on us."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self.pid = pid
        self._proc = proc / str(pid)
        self.pidfd = os.pidfd_open(pid)

    def state(self) -> str:
        """The state letter of ``/proc/<pid>/stat``; ``X`` when it is gone."""
        try:
            text = (self._proc / "stat").read_text()
        except OSError:
            return "X"
        return text[text.rfind(")") + 2]

    def belongs_to(self, container: str) -> bool:
        """Whether one of its cgroups is the container's."""
        try:
            return container in (self._proc / "cgroup").read_text()
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """Signal this very process, if it still exists."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def join(self, procs: Sequence[Path]) -> None:
        """Move it into the cgroups; raises OSError when the kernel refuses one."""
        for path in procs:
            path.write_text(str(self.pid))

    def rank(self, oom_score: int) -> None:
        """Add to its rank as a victim of the kernel."""
        (self._proc / "oom_score_adj").write_text(str(oom_score))

    def is_in(self, directories: Sequence[Path]) -> bool:
        """Whether it is listed in every one of the cgroup directories."""
        try:
            listed = [(path / "cgroup.procs").read_text().split() for path in directories]
        except OSError:
            return False
        return all(str(self.pid) in pids for pids in listed)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self.pidfd)


async def pass_gate(
    find_pid: Callable[[], Awaitable[int]],
    container: str,
    directories: Sequence[Path],
    *,
    seconds: float = GATE_SECONDS,
    oom_score: int = 0,
) -> Gated:
    """Wait for the stopped shell, move it into ``directories`` and let it continue.

    ``find_pid`` returns its number on this machine, 0 while there is none.

    Raises:
        ToolNotStarted: it does not stop in time, is not the container's, or cannot be moved. It is
            then killed.
    """
    gated: Gated | None = None
    try:
        with anyio.move_on_after(seconds):
            gated = Gated(await _wait_for_pid(find_pid))
            await _wait_until_stopped(gated)
            _move(gated, container, directories)
            if oom_score:
                gated.rank(oom_score)
            gated.signal(signal.SIGCONT)
            return gated
        raise ToolNotStarted(f"The exec did not stop at its gate in {seconds} s.", remedy=REMEDY)
    except BaseException as error:
        if gated is not None:
            gated.signal(signal.SIGKILL)
            gated.close()
        if isinstance(error, OSError):
            raise ToolNotStarted(
                f"The exec cannot be moved into its cgroup: {error}.", remedy=REMEDY
            ) from error
        raise


async def _wait_for_pid(find_pid: Callable[[], Awaitable[int]]) -> int:
    pause = 0.002
    while not (pid := await find_pid()):
        await anyio.sleep(pause)
        pause = min(0.05, pause * 2)
    return pid


async def _wait_until_stopped(gated: Gated) -> None:
    pause = 0.0005
    while (state := gated.state()) != "T":
        if state in ("X", "Z"):
            raise ToolNotStarted("The exec ended before its gate.", remedy=REMEDY)
        await anyio.sleep(pause)
        pause = min(0.02, pause * 2)


def _move(gated: Gated, container: str, directories: Sequence[Path]) -> None:
    if not gated.belongs_to(container):
        raise ToolNotStarted("The exec's process is not the container's.", remedy=REMEDY)
    gated.join([path / "cgroup.procs" for path in directories])
    if not gated.is_in(directories) or gated.state() != "T":
        raise ToolNotStarted("The exec left its gate before it was moved.", remedy=REMEDY)
