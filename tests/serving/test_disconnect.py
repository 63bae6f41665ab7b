"""A client that goes away takes its turn with it: streaming or not, running or queued."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from agentrt.serving.settings import ServeSettings
from tests.serving.conftest import LiveServer, chat_body, encoded_request


@contextmanager
def connection(live: LiveServer, **fields: object):
    """Send a chat request over a socket that the test may close at any time."""
    with socket.create_connection(live.address, timeout=20) as sock:
        sock.sendall(encoded_request(chat_body(**fields)))
        yield sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        part = sock.recv(65536)
        assert part, f"closed before {mark!r}: {got!r}"
        got += part
    return got


def test_closing_a_stream_frees_its_pages(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.runtime.throttle.hold()
    with connection(live, stream=True, max_tokens=500) as sock:
        live.runtime.throttle.allow(3)
        read_until(sock, b'"content":"')
        assert live.metric("agentrt_kv_pages", state="leased") > 0
    live.wait_for("agentrt_disconnects_total", 1)
    # One step is already waiting inside the backend; it is the only one that may still run.
    steps = live.metric("agentrt_engine_steps_total")
    live.runtime.throttle.allow(1)
    live.wait_for("agentrt_kv_pages", 0, state="leased")
    assert live.metric("agentrt_engine_steps_total") <= steps + 1
    assert live.metric("agentrt_requests_running") == 0
    assert live.metric("agentrt_requests_total", finish_reason="cancelled") == 1


@pytest.mark.parametrize("stream", [True, False])
def test_closing_while_it_runs_or_waits(serve: Callable[..., LiveServer], stream: bool) -> None:
    live = serve(max_seqs=1)
    live.runtime.throttle.slow()
    with connection(live, stream=True, max_tokens=3000) as first:
        read_until(first, b'"content":"')
        with connection(live, stream=stream, max_tokens=3000, text="queued"):
            live.wait_for("agentrt_requests_waiting", 1)
        live.wait_for("agentrt_requests_waiting", 0)
        assert live.metric("agentrt_disconnects_total") == 1
        assert live.metric("agentrt_requests_running") == 1
        read_until(first, b'"content":"')
    live.wait_for("agentrt_kv_pages", 0, state="leased")


def test_closing_an_unstreamed_request_frees_its_pages(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.runtime.throttle.slow()
    with connection(live, max_tokens=3000):
        live.wait_for("agentrt_requests_running", 1)
    live.wait_for("agentrt_kv_pages", 0, state="leased")
    assert live.runtime.backend.open_turns == 0


def test_a_repeated_request_takes_over_what_was_lost(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.runtime.throttle.slow()
    with connection(live, stream=True, max_tokens=3000) as sock:
        head = read_until(sock, b'"content":"').decode()
    live.runtime.throttle.free()
    live.wait_for("agentrt_disconnects_total", 1)
    again = live.http.post(
        f"{live.url}/chat/completions",
        json=chat_body(),
        headers={"x-stainless-retry-count": "1"},
    )
    assert f"x-agentrt-program: {again.headers['x-agentrt-program']}" in head
    assert live.metric("agentrt_turns_placed_total", how="retry") == 1
    assert live.metric("agentrt_client_retries_total") == 1


def test_head_and_comments_come_while_a_turn_waits(serve: Callable[..., LiveServer]) -> None:
    live = serve(ServeSettings(drain=0.0, keepalive=0.02))
    live.runtime.throttle.hold()
    with connection(live, stream=True) as sock:
        head = read_until(sock, b": keep-alive\n\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"data:" not in head
        read_until(sock, b": keep-alive\n\n")
        live.runtime.throttle.free()
        assert read_until(sock, b"[DONE]").count(b'"content":') == 9


def test_a_body_that_never_ends_is_forgotten(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    with socket.create_connection(live.address, timeout=20) as sock:
        sock.sendall(encoded_request(chat_body())[:-5])
    live.wait_for("agentrt_requests_refused_total", 1, code="cancelled")
