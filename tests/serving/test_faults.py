"""Faults of the engine as clients and operators see them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.engine.faults import FAULTS, FaultyBackend
from tests.serving.conftest import LiveServer, chat_body


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_is_told_and_the_next_request_is_served(
    serve: Callable[..., LiveServer], fault: str, stream: bool
) -> None:
    live = serve(backend=FaultyBackend)
    url = f"{live.url}/chat/completions"
    before = live.http.post(url, json=chat_body()).json()
    live.runtime.backend.next_fault = fault
    failed = live.http.post(url, json=chat_body("Something else.", stream=stream))
    if stream:
        assert failed.status_code == 200
        lines = [line for line in failed.text.splitlines() if line.startswith("data: {")]
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
    else:
        assert failed.status_code == 503
        assert failed.headers["retry-after"]
        error = failed.json()["error"]
    assert error["code"] == "engine_fault"
    assert error["message"].startswith("The turn failed: ")
    after = live.http.post(url, json=chat_body()).json()
    assert after["choices"] == before["choices"]
    live.wait_for("agentrt_engine_restarts_total", 1)
    assert live.metric("agentrt_engine_failed_steps_total") == 1
    assert live.metric("agentrt_engine_up") == 1
    health = live.http.get(f"{live.root}/health")
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["restarts"]) == ("running", 1)
    assert health.json()["last_fault"]


def test_an_engine_that_has_given_up_says_so(serve: Callable[..., LiveServer]) -> None:
    live = serve(backend=FaultyBackend)
    url = f"{live.url}/chat/completions"
    for text in "abcd":
        live.runtime.backend.next_fault = "raise"
        assert live.http.post(url, json=chat_body(text)).status_code == 503
    live.wait_for("agentrt_engine_up", 0)
    for path in ("/health", "/healthz", "/ready", "/readyz"):
        response = live.http.get(f"{live.root}{path}")
        assert response.status_code == 503
        assert response.json()["status"] == "broken"
        assert "the kernel is bad" in response.json()["last_fault"]
    refused = live.http.post(url, json=chat_body())
    assert refused.status_code == 503
    assert "the kernel is bad" in refused.json()["error"]["message"]
