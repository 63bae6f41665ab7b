"""Scripted models, and models behind a URL that misbehave in every way that they know."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest

from agentrt.errors import ConfigError
from agentrt.workflows.models import ModelFailure, ScriptedModel, merge_messages
from agentrt.workflows.models_http import HttpModel, HttpOptions, ServedModel, served_model

ASKED = [{"role": "user", "content": "Is it on?"}]
STATES = ("enabled", "disabled")
Handler = Callable[[BaseHTTPRequestHandler, dict], None]


class Server(ThreadingHTTPServer):
    """Answers request n with the n-th behaviour; the last one is repeated."""

    daemon_threads = True

    def __init__(self, behaviours: list[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), _Dispatch)
        self.behaviours = behaviours
        self.bodies: list[dict] = []
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of these tests."""


class _Dispatch(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        number = min(len(self.server.bodies), len(self.server.behaviours)) - 1
        self.server.behaviours[number](self, body)

    def do_GET(self) -> None:
        self.server.behaviours[0](self, {})

    def log_message(self, *arguments: object) -> None:
        """Tests are quiet."""


def answer(text: object, **more: object) -> Handler:
    message = {"choices": [{"message": {"role": "assistant", "content": text}}], **more}
    return raw(200, json.dumps(message).encode())


def raw(status: int, data: bytes, **headers: str) -> Handler:
    def handle(handler: BaseHTTPRequestHandler, body: dict) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return handle


def cut(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def hang(handler: BaseHTTPRequestHandler, body: dict) -> None:
    handler.server.stop.wait(30)


def drip(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Send a byte at a time: no single read is slow, the whole never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        if handler.server.stop.wait(0.02):
            return


@contextmanager
def served(*behaviours: Handler) -> Iterator[Server]:
    server = Server(list(behaviours))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


async def ask(url: str, **options: object) -> tuple[object, list[float]]:
    """Ask for a choice; return it or the failure, and the waits between the attempts."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    chosen = HttpOptions(**{"timeout": 5.0, "attempts": 3, **options})
    model = HttpModel(url, "m", options=chosen, sleep=sleep)
    try:
        return await model.choose(ASKED, STATES, context="Step1"), waits
    except ModelFailure as failure:
        return failure, waits
    finally:
        await model.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    ['{"answer": "enabled"}', "enabled", '```json\n{"answer": "enabled"}\n```', '"enabled"'],
)
async def test_an_answer_is_read_in_the_forms_models_write_it(text) -> None:
    usage = {"total_tokens": 30, "prompt_tokens_details": {"cached_tokens": 16}}
    with served(answer(text, usage=usage)) as server:
        choice, waits = await ask(server.url)
    assert (choice.answer, choice.tokens, choice.cached_tokens, waits) == ("enabled", 30, 16, [])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("behaviour", "kind", "requests"),
    [
        (raw(500, b"oops"), "server_error", 3),
        (raw(503, b""), "server_error", 3),
        (raw(429, b"slow down"), "rate_limited", 3),
        (raw(401, b"who are you"), "refused", 1),
        (raw(200, b'{"choices": ['), "truncated", 3),
        (cut, "truncated", 3),
        (raw(200, b'{"object": "list"}'), "nonsense", 1),
        (raw(200, b"[1]"), "nonsense", 1),
        (answer(None), "nonsense", 1),
        (answer("perhaps"), "nonsense", 3),
        (answer('{"answer": "Enabled"}'), "nonsense", 3),
        (answer('{"answer": ["enabled"]}'), "nonsense", 3),
    ],
)
async def test_misbehaviour_has_a_name_and_a_bound(behaviour, kind, requests) -> None:
    with served(behaviour) as server:
        failure, _ = await ask(server.url)
        count = len(server.bodies)
    assert isinstance(failure, ModelFailure)
    assert (failure.kind, count) == (kind, requests)
    assert failure.remedy


@pytest.mark.anyio
@pytest.mark.parametrize("behaviour", [hang, drip])
async def test_a_server_that_takes_for_ever_is_a_timeout(behaviour) -> None:
    with served(behaviour) as server:
        failure, waits = await ask(server.url, timeout=0.2, attempts=2)
        # A busy server may not have read a request before it was given up.
        assert (failure.kind, len(waits), len(server.bodies) <= 2) == ("timeout", 1, True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "found"),
    [
        ('{"data": [{"id": "big", "owned_by": "us"}, {"id": "x"}]}', ServedModel("big", False)),
        ('{"data": [{"id": "own", "owned_by": "agentrt"}]}', ServedModel("own", True)),
        ('{"data": []}', None),
        ('{"data": [1]}', None),
        ("nonsense", None),
    ],
)
async def test_a_server_is_asked_for_its_first_model(data, found) -> None:
    with served(raw(200, data.encode())) as server:
        assert await served_model(server.url) == found


@pytest.mark.anyio
async def test_a_server_that_lists_nothing_in_time_has_no_first_model() -> None:
    with served(hang) as server:
        assert await served_model(server.url, timeout=0.2) is None


@pytest.mark.anyio
async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failure, waits = await ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    assert (failure.kind, waits) == ("unreachable", [0.5, 1.0])


@pytest.mark.anyio
async def test_retry_after_is_kept_up_to_a_bound() -> None:
    busy = [raw(429, b"", Retry_After=wait) for wait in ("7", "9999", "Wed, 21 Oct 2026 07:28:00")]
    with served(*busy, answer("disabled")) as server:
        choice, waits = await ask(server.url, attempts=4)
    assert (choice.answer, waits) == ("disabled", [7.0, 30.0, 2.0])


@pytest.mark.anyio
async def test_an_answer_outside_the_set_is_asked_for_again() -> None:
    with served(answer("maybe"), answer("", usage={"total_tokens": 3}), answer("disabled")) as s:
        choice, _ = await ask(s.url, guided=True)
        last = s.bodies[-1]
    assert choice.answer == "disabled"
    assert last["guided_choice"] == list(STATES)
    roles = [message["role"] for message in last["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.anyio
async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with served(raw(200, b" " * (5 << 20))) as server:
        failure, _ = await ask(server.url)
    assert failure.kind == "nonsense"


@pytest.mark.anyio
async def test_write_refuses_an_empty_text() -> None:
    with served(answer("  "), answer("All is well.")) as server:
        model = HttpModel(server.url, "m", api_key="k")
        with pytest.raises(ModelFailure, match="wrote nothing"):
            await model.write(ASKED, context="Step1")
        assert (await model.write(ASKED, context="Step1")).text == "All is well."
        await model.aclose()


@pytest.mark.anyio
async def test_cancelling_a_question_returns_at_once() -> None:
    with served(hang) as server:
        begun = time.monotonic()
        with anyio.move_on_after(0.1) as scope:
            await ask(server.url, timeout=60.0)
        assert scope.cancelled_caught
        assert time.monotonic() - begun < 20


def test_a_url_is_checked() -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        HttpModel("localhost:80", "m")


@pytest.mark.anyio
async def test_scripts() -> None:
    listed = ScriptedModel(["enabled", "All is well."], tokens=5)
    choice = await listed.choose(ASKED, STATES, context="Step1/e")
    assert (choice.answer, choice.tokens) == ("enabled", 5)
    assert (await listed.write(ASKED, context="Step1")).text == "All is well."
    with pytest.raises(ModelFailure) as caught:
        await listed.write(ASKED, context="Step2")
    assert caught.value.kind == "unexpected"
    assert listed.calls == ["Step1/e", "Step1", "Step2"]


@pytest.mark.anyio
async def test_scripts_by_context_and_by_function() -> None:
    named = ScriptedModel(
        {"a": ["one", "two"], "b": "always", "c": ModelFailure("timeout", "x", remedy="y")}
    )
    said = [(await named.write(ASKED, context=context)).text for context in "abab"]
    assert said == ["one", "always", "two", "always"]
    for context in ("a", "c", "unknown"):
        with pytest.raises(ModelFailure):
            await named.write(ASKED, context=context)
    function = ScriptedModel(lambda messages, choices, context: f"{context}:{choices}")
    assert (await function.choose(ASKED, STATES, context="x")).answer.startswith("x:('enabled'")


def test_neighbours_of_one_role_are_joined() -> None:
    messages = [("system", "a"), ("user", "b"), ("user", "c"), ("assistant", "d")]
    merged = merge_messages([{"role": role, "content": text} for role, text in messages])
    assert [m["content"] for m in merged] == ["a", "b\n\nc", "d"]
