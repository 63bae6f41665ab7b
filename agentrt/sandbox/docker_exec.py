"""One exec in a container as a tool process: its stream, its exit, its end."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import anyio
import docker
from anyio import CancelScope, to_thread
from docker.errors import APIError

from agentrt.errors import SandboxError, SandboxGone, ToolNotStarted
from agentrt.sandbox.common import Call
from agentrt.sandbox.descriptors import read_all, write_all
from agentrt.sandbox.docker_api import engine_errors
from agentrt.sandbox.gate import ENTER_STOPPED, Gated, pass_gate
from agentrt.sandbox.launcher import inner_argv
from agentrt.sandbox.output import Capture, Demultiplexer
from agentrt.sandbox.supervise import Group, ToolProcess

__all__ = ["DockerProcess", "start_exec"]

LOST_SECONDS = 5.0
EXIT_SECONDS = 15.0
STDERR = 2
CONFLICT, NOT_FOUND = 409, 404


class _Exec:
    """An exec known to the engine, with the connection that carries its streams."""

    def __init__(self, api: docker.APIClient, exec_id: str, stream: Any) -> None:
        self._api = api
        self._id = exec_id
        self._stream = stream
        # A descriptor of our own: the client wraps the connection in buffers and time-outs.
        self.socket = socket.socket(fileno=socket.dup(stream.fileno()))
        self.socket.setblocking(False)

    async def inspect(self) -> dict[str, Any]:
        """What the engine knows of the exec."""

        def ask() -> dict[str, Any]:
            with engine_errors("Inspecting an exec"):
                return dict(self._api.exec_inspect(self._id))

        return await to_thread.run_sync(ask)

    async def pid(self) -> int:
        """Its process number on this machine; 0 while there is none.

        Raises:
            ToolNotStarted: the engine could not start it.
        """
        known = await self.inspect()
        if not known["Pid"] and not known["Running"] and known["ExitCode"] is not None:
            raise ToolNotStarted(
                "The engine could not start the exec.",
                remedy="Use an image that has /bin/sh and the libraries that it needs.",
            )
        return int(known["Pid"])

    def close(self) -> None:
        self.socket.close()
        # The response first: it flushes the buffer that wraps the stream.
        response = getattr(self._stream, "_response", None)
        if response is not None:
            response.close()
        self._stream.close()


class DockerProcess(ToolProcess):
    """A tool call inside a container, past its gate."""

    def __init__(self, running: _Exec, gated: Gated) -> None:
        self._running = running
        self._gated = gated
        self._code: int | None = None
        self._closed = False

    async def pump(self, stdout: Capture, stderr: Capture) -> None:
        """Move output until the engine ends the stream."""
        frames = Demultiplexer()

        def feed(data: bytes) -> None:
            for stream, payload in frames.feed(data):
                (stderr if stream == STDERR else stdout).feed(payload)

        await read_all(self._running.socket.fileno(), feed)

    async def feed(self, stdin: bytes) -> None:
        """Write ``stdin``, then end it; stops quietly when the command does not read it."""
        await write_all(self._running.socket.fileno(), stdin)
        with contextlib.suppress(OSError):
            self._running.socket.shutdown(socket.SHUT_WR)

    async def wait(self) -> int:
        """Wait for the process, then for the engine to have taken its exit code."""
        if self._code is not None:
            return self._code
        await anyio.wait_readable(self._gated.pidfd)
        deadline = anyio.current_time() + EXIT_SECONDS
        pause = 0.002
        while True:
            known = await self._running.inspect()
            if not known["Running"] and known["ExitCode"] is not None:
                self._code = int(known["ExitCode"])
                return self._code
            if anyio.current_time() > deadline:
                raise SandboxError(
                    "The engine does not notice that the command has ended.",
                    remedy="Look at its log: journalctl -u docker",
                )
            await anyio.sleep(pause)
            pause = min(0.05, pause * 2)

    def kill(self) -> None:
        """SIGKILL the process itself; nothing when it has ended."""
        if not self._closed:
            self._gated.signal(9)

    def started(self) -> bool:
        """It passed its gate: the command's turn came."""
        return True

    def close(self) -> None:
        """Release the connection and the descriptor."""
        if not self._closed:
            self._closed = True
            self._running.close()
            self._gated.close()


async def start_exec(
    api: docker.APIClient, container: str, call: Call, group: Group
) -> DockerProcess:
    """Start a call in a container, in the cgroup ``group``, and let it through the gate.

    Raises:
        SandboxGone: the container does not run any more.
        ToolNotStarted: it did not come through the gate.
        BackendUnavailable: the engine does not answer.
    """

    def begin() -> _Exec:
        try:
            with engine_errors("Starting an exec"):
                made = api.exec_create(
                    container,
                    inner_argv(call.command, call.cwd, call.word, enter=ENTER_STOPPED),
                    stdin=call.has_stdin,
                    environment=dict(call.env),
                )
                return _Exec(api, made["Id"], api.exec_start(made["Id"], socket=True))
        except SandboxError as error:
            if _container_gone(error):
                raise SandboxGone(error.message, remedy="Make a new sandbox.") from error
            raise

    running = await to_thread.run_sync(begin)
    try:
        gated = await pass_gate(running.pid, container, group.paths, oom_score=call.oom_score)
        return DockerProcess(running, gated)
    except BaseException:
        await _kill_lost(running, container)
        running.close()
        raise


def _container_gone(error: SandboxError) -> bool:
    cause = error.__cause__
    return isinstance(cause, APIError) and cause.status_code in (CONFLICT, NOT_FOUND)


async def _kill_lost(running: _Exec, container: str) -> None:
    """Kill an exec that was given up before its gate: it would stay stopped for ever."""
    with (
        CancelScope(shield=True, deadline=anyio.current_time() + LOST_SECONDS),
        contextlib.suppress(OSError, SandboxError),
    ):
        while True:
            known = await running.inspect()
            if known["Pid"]:
                gated = Gated(int(known["Pid"]))
                if gated.belongs_to(container):
                    gated.signal(9)
                gated.close()
                return
            if known["ExitCode"] is not None:
                return
            await anyio.sleep(0.01)
