"""The processes of ranks 1 and up, from start to end, and a thread that watches them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentrt.engine.parallel.rank import RankSettings
from agentrt.engine.parallel.wire import Channel
from agentrt.errors import EngineFault

__all__ = ["Crew"]

_logger = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between looks at the deadline; what a rank says or its end is seen at once."""
_SEND = 30.0
"""Seconds that a message may take: its reader does nothing else than to read."""
_END = 5.0
"""Seconds for a rank that was told to stop, or that was killed, to be gone."""


@dataclass(slots=True, eq=False)
class _Member:
    rank: int
    process: subprocess.Popen[bytes]
    channel: Channel
    said: str = ""
    """What it said was wrong before it ended."""


class Crew:
    """One launch of ranks. The first failure ends all of them; ``failure`` then says what it was.

    Args:
        settings: of each rank from 1 on.
        on_failure: called in the watching thread after the ranks were killed.
        clock: seconds.
    """

    def __init__(
        self,
        settings: Sequence[RankSettings],
        on_failure: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_failure = on_failure
        self._clock = clock
        self._closing = False
        # Shared with the watching thread, under the condition's lock:
        self._changed = threading.Condition()
        self.failure: str | None = None
        self._answers: list[str] = []
        self._deadline: float | None = None
        self._members: list[_Member] = []
        try:
            for one in settings:
                self._members.append(_start(one))
        except BaseException:
            self.kill()
            raise
        self._watch = threading.Thread(target=self._run, name="agentrt-ranks", daemon=True)
        self._watch.start()

    @property
    def pids(self) -> list[int]:
        """Return the ranks' process ids."""
        return [member.process.pid for member in self._members]

    # --- what rank 0 does

    def send(self, kind: str, data: bytes = b"") -> None:
        """Send all ranks a message.

        Raises:
            EngineFault: a rank is gone or does not read.
        """
        for member in self._members:
            try:
                member.channel.send(kind, data)
            except OSError as error:
                self._fail(f"Rank {member.rank} cannot be reached: {error}")
        self.check()

    def await_all(self, kind: str, seconds: float) -> None:
        """Wait until all ranks have answered ``kind``.

        Raises:
            EngineFault: a rank has failed, or not all answered in time.
        """
        until = self._clock() + seconds
        with self._changed:
            while self.failure is None and self._answers.count(kind) < len(self._members):
                left = until - self._clock()
                if left <= 0:
                    break
                self._changed.wait(left)
            missing = len(self._members) - self._answers.count(kind)
            self._answers = [each for each in self._answers if each != kind]
        if missing and self.failure is None:
            self._fail(f"{missing} ranks did not answer within {seconds:g} s")
        self.check()

    def limit(self, seconds: float | None) -> None:
        """Have the ranks fail unless this is called again in time; None: no limit."""
        with self._changed:
            self._deadline = None if seconds is None else self._clock() + seconds

    def check(self) -> None:
        """Raise ``EngineFault`` if a rank has failed."""
        if self.failure is not None:
            raise EngineFault(
                f"{self.failure}.",
                remedy="See the log of that rank; the others were ended with it.",
            )

    def learn(self, seconds: float) -> None:
        """Wait a moment for a failure to become known, then :meth:`check`."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, seconds)
        self.check()

    def close(self, *, ask: bool = True) -> None:
        """End all ranks: ask them to, then kill them; waits for their ends. Idempotent."""
        self._closing = True
        if ask:
            self._ask()
        self.kill()
        if self._watch is not threading.current_thread():
            self._watch.join()
        for member in self._members:
            member.channel.close()

    def _ask(self) -> None:
        for member in self._members:
            with contextlib.suppress(OSError):
                member.channel.send("s")
        until = self._clock() + _END
        for member in self._members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(until - self._clock(), 0.0))

    def kill(self) -> None:
        """Kill all ranks and wait for their ends."""
        self._closing = True
        for member in self._members:
            member.process.kill()
        for member in self._members:
            try:
                member.process.wait(_END)
            except subprocess.TimeoutExpired:
                # In the kernel, as with a device that hangs: it ends when that lets it go.
                _logger.error(
                    "Rank %d (pid %d) was killed and is not gone", member.rank, member.process.pid
                )

    # --- the watching thread

    def _run(self) -> None:
        poll = select.poll()
        members = {member.channel.fileno(): member for member in self._members}
        for descriptor in members:
            poll.register(descriptor, select.POLLIN)
        while members and self.failure is None:
            for descriptor, _ in poll.poll(1000 * _LOOK):
                if not self._hear(members[descriptor]):
                    poll.unregister(descriptor)
                    del members[descriptor]
            if self._deadline is not None and self._clock() > self._deadline:
                self._fail("The ranks did not get through a step in time: one of them hangs")

    def _hear(self, member: _Member) -> bool:
        """Take what a rank says; False once it is gone."""
        message = member.channel.receive()
        if message is None:
            if not self._closing:
                self._fail(_end(member))
            return False
        kind, data = message
        if kind == "e":
            member.said = json.loads(data)["error"]
        else:
            with self._changed:
                self._answers.append(kind)
                self._changed.notify_all()
        return True

    def _fail(self, why: str) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = why
        _logger.error("%s: all ranks are ended.", why)
        self.kill()
        self._on_failure()
        with self._changed:
            self._changed.notify_all()


def _start(settings: RankSettings) -> _Member:
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "agentrt.engine.parallel.rank", str(number)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(number,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Ctrl-C is for rank 0 alone, which then ends the others in order.
            start_new_session=True,
        )
    channel = Channel(ours, _SEND)
    channel.tell("i", settings.to_json())
    return _Member(settings.rank, process, channel)


def _end(member: _Member) -> str:
    """Say how a rank has ended."""
    try:
        status = member.process.wait(_END)
    except subprocess.TimeoutExpired:
        return f"Rank {member.rank} closed its connection"
    if member.said:
        return f"Rank {member.rank} failed: {member.said}"
    if status < 0:
        return f"Rank {member.rank} was ended by {signal.Signals(-status).name}"
    return f"Rank {member.rank} ended with status {status}"
