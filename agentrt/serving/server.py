"""The server process: a socket, uvicorn on it, and an orderly end."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import anyio
import uvicorn

from agentrt.errors import ConfigError
from agentrt.serving.app import create_app, gate_of
from agentrt.serving.gate import Gate
from agentrt.serving.settings import ServeSettings

if TYPE_CHECKING:
    from agentrt.runtime import Runtime

__all__ = ["DrainingServer", "bind", "serve"]

_AFTER_CUT = 3.0
"""Seconds that connections get to close after their turns were cut."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that holds ``host:port`` and does not listen yet; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _cannot_bind(host, port, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        sock.close()
        raise _cannot_bind(host, port, error) from error
    return sock


async def serve(
    runtime: Runtime,
    settings: ServeSettings,
    sock: socket.socket,
    *,
    on_started: Callable[[], None] = lambda: None,
    access_log: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, then end in order; see :class:`DrainingServer`.

    ``on_started`` is called once the server listens. The signals' former handlers are back in place
    when this returns; it does not raise them again.
    """
    app = create_app(runtime, settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain + _AFTER_CUT),
    )
    await DrainingServer(config, gate_of(app), settings.drain, on_started).serve(sockets=[sock])


class DrainingServer(uvicorn.Server):
    """Ends in stages: take no new turns; let running ones go on for ``drain`` seconds; cut the
    rest, telling their clients; end all programs. A second signal cuts at once.
    """

    def __init__(
        self, config: uvicorn.Config, gate: Gate, drain: float, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._gate = gate
        self._drain = drain
        self._on_started = on_started
        self._again = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Go through the stages."""
        self._gate.drain()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_later)
            await super().shutdown(sockets)
            tasks.cancel_scope.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. The first ends the server, a second its patience."""
        del sig, frame
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._again.set)
        self.should_exit = True

    async def _cut_later(self) -> None:
        with anyio.move_on_after(self._drain):
            await self._again.wait()
        self._gate.cut()


def _cannot_bind(host: str, port: int, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError(
        f"Cannot listen on {host}:{port}: {reason}.",
        remedy="Choose another --host or --port; --port 0 takes a free port.",
    )
