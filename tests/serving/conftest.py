"""Servers on the loopback, each with an engine of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from agentrt.serving.app import create_app, gate_of
from agentrt.serving.gate import Gate
from agentrt.serving.server import DrainingServer, bind
from agentrt.serving.settings import ServeSettings
from tests.serving.fakes import PATIENCE, FakeRuntime


class LiveServer:
    """A server that runs in a thread with its own event loop."""

    def __init__(self, make_runtime: Callable[[], Any], settings: ServeSettings) -> None:
        self._make_runtime = make_runtime
        self._settings = settings
        self._sock = bind("127.0.0.1", 0)
        self._ready = threading.Event()
        self.address = self._sock.getsockname()
        self.root = f"http://127.0.0.1:{self.address[1]}"
        self.url = f"{self.root}/v1"
        self.runtime: Any = None
        self.server: DrainingServer
        self.gate: Gate
        # Making a client takes long (certificates); no test needs more than one.
        self.http = httpx.Client(timeout=PATIENCE, verify=False)
        self._pool = ThreadPoolExecutor(1)
        self._done: Future[None] | None = None

    async def _main(self) -> None:
        async with self._make_runtime() as runtime:
            self.runtime = runtime
            make_builder = getattr(runtime, "make_builder", None)  # a real runtime needs none
            app = create_app(runtime, self._settings, make_builder=make_builder)
            config = uvicorn.Config(
                app, log_config=None, log_level="warning", access_log=False, lifespan="on"
            )
            drain = self._settings.drain
            self.gate = gate_of(app)
            self.server = DrainingServer(config, self.gate, drain, self._ready.set)
            await self.server.serve(sockets=[self._sock])

    def start(self) -> None:
        self._done = self._pool.submit(anyio.run, self._main)
        self._done.add_done_callback(lambda _: self._ready.set())
        assert self._ready.wait(PATIENCE)
        if self._done.done():
            self._done.result()

    def signal(self) -> None:
        """Do what a SIGTERM does."""
        self.server.handle_exit(15, None)

    def wait(self) -> None:
        """Wait for the server's end, and raise what it ended with."""
        assert self._done is not None
        self._done.result(PATIENCE)
        self._pool.shutdown()
        self.http.close()

    def stop(self) -> None:
        """End the server, if it has not ended."""
        assert self._done is not None
        if not self._done.done():
            self.signal()
        self.wait()

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one metric, as a scraper sees it; 0 if it is not there."""
        wanted = name + (
            "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
            if labels
            else ""
        )
        for line in self.http.get(f"{self.root}/metrics").text.splitlines():
            key, _, value = line.rpartition(" ")
            if key == wanted:
                return float(value)
        return 0.0

    def wait_until_draining(self) -> None:
        """Wait until no new turn is taken."""
        deadline = time.monotonic() + PATIENCE
        while not self.gate.draining:
            assert time.monotonic() < deadline, "the server does not drain"
            time.sleep(0.01)

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Ask for a metric until it has a value, or give up."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name}{labels} is {found}, not {value}"
            time.sleep(0.01)


@contextmanager
def running(make_runtime: Callable[[], Any], settings: ServeSettings) -> Iterator[LiveServer]:
    live = LiveServer(make_runtime, settings)
    live.start()
    try:
        yield live
    finally:
        live.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    """Return ``serve(settings, **runtime arguments) -> LiveServer``; all are stopped at the end."""
    started: list[LiveServer] = []

    def start(settings: ServeSettings | None = None, **runtime: Any) -> LiveServer:
        live = LiveServer(lambda: FakeRuntime(**runtime), settings or ServeSettings(drain=0.0))
        started.append(live)
        live.start()
        return live

    yield start
    for live in started:
        live.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveServer]:
    """Return a server that a module's tests share; nothing about it is special."""
    with running(FakeRuntime, ServeSettings(drain=0.0, keepalive=0.05)) as live:
        yield live


def chat_body(text: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """Return a chat request that asks for eight tokens."""
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "ignore_eos": True,
    }
    return body | fields


def encoded_request(body: dict[str, Any]) -> bytes:
    """Return a chat request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def events(response: httpx.Response) -> list[str]:
    """Return the data of a stream's events, as text."""
    lines = [line for line in response.iter_lines() if line]
    return [line.removeprefix("data: ") for line in lines if not line.startswith(":")]
