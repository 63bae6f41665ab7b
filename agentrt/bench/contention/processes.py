"""The replay processes of one run: started in their cgroups, released, and waited for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.bench.contention.curves import BASE, CHUNK, PAGE, Curve
from agentrt.errors import SandboxError
from agentrt.sandbox.launcher import die_with_parent, joined_argv

__all__ = ["Replay", "replay_settings", "spawn", "wait_ready"]

SCRIPT = Path(__file__).with_name("replay_process.py")
READY_SECONDS = 60.0
LEAST_PAUSE = 0.005
PAUSE_SHARE = 0.25
"""A gap counts as a stop from this share of the time between two samples on, and from 5 ms."""
END_SECONDS = 20.0


def replay_settings(curve: Curve, *, speed: float, scale: float) -> dict[str, Any]:
    """What the replay process reads: sizes in whole pages, times already divided by the speed."""

    def pages(size: float) -> int:
        return max(PAGE, int(size) // PAGE * PAGE)

    return {
        "base": pages(BASE * scale),
        "chunk": pages(CHUNK * scale),
        "pause": max(LEAST_PAUSE, PAUSE_SHARE * curve.spacing / speed),
        "steps": [[at / speed, int(size)] for at, size in curve.scaled(scale).samples],
    }


@dataclass(slots=True)
class Replay:
    """One replay process. Times are seconds on the system's monotonic clock."""

    name: str
    process: subprocess.Popen[bytes]
    released: float | None = None
    ended: float | None = None
    told: dict[str, Any] | None = None
    _text: bytes = b""

    @property
    def done(self) -> bool:
        """Whether the process is gone."""
        return self.ended is not None

    @property
    def survived(self) -> bool:
        """Whether it followed its curve to the end."""
        return self.told is not None

    def release(self, now: float) -> None:
        """Let it begin; once only."""
        if self.released is not None or self.done:
            return
        self.released = now
        assert self.process.stdin is not None
        # One that was killed before its word came is found by ``read``.
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"go\n")
            self.process.stdin.close()

    @property
    def descriptor(self) -> int:
        """Readable when it has said something or has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self, now: float) -> None:
        """Take what it said; at the end of the stream, take its end too."""
        piece = os.read(self.descriptor, 1 << 16)
        self._text += piece
        if not piece:
            self._finish(now)

    @property
    def is_ready(self) -> bool:
        """Whether the interpreter has started and waits for its word."""
        return self._text.startswith(b"ready\n")

    def _finish(self, now: float) -> None:
        code = self.process.wait(END_SECONDS)
        self.ended = now
        _, _, last = self._text.partition(b"\n")
        if code == 0 and last.strip():
            self.told = json.loads(last)
            self.ended = float(self.told["ended"])

    def close(self) -> None:
        """Kill it if it lives; close its pipes."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(END_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def spawn(name: str, procs: Sequence[Path], settings: Path) -> Replay:
    """Start a replay in the cgroups of ``procs``; it dies with this thread's process."""
    argv = [sys.executable, "-I", "-S", str(SCRIPT), str(settings)]
    process = subprocess.Popen(
        die_with_parent(joined_argv(procs, argv)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    return Replay(name, process)


def wait_ready(replays: Mapping[str, Replay], *, seconds: float = READY_SECONDS) -> None:
    """Wait until every interpreter stands at its start.

    Raises:
        SandboxError: one did not get there in time.
    """
    deadline = time.monotonic() + seconds
    while waiting := [one for one in replays.values() if not one.is_ready]:
        readable, _, _ = select.select([one.descriptor for one in waiting], [], [], 0.1)
        for one in waiting:
            if one.descriptor in readable:
                one.read(time.monotonic())
        lost = [one.name for one in waiting if one.done]
        if lost or time.monotonic() > deadline:
            names = ", ".join(lost or [one.name for one in waiting])
            raise SandboxError(
                f"The replay {names} did not start.",
                remedy="Check the limit: a replay needs room for a Python interpreter.",
            )
