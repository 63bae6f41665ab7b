"""About the server itself: models, health, metrics, refusals under load, shutting down."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import StepPlan
from agentrt.serving.server import bind
from agentrt.serving.settings import ServeSettings, parse_api_keys
from tests.serving.conftest import PATIENCE, LiveServer, chat_body


def test_models(shared: LiveServer) -> None:
    (model,) = shared.http.get(f"{shared.url}/models").json()["data"]
    assert model.keys() == {"id", "object", "created", "owned_by"}
    assert model["id"] == "fake"
    assert shared.http.get(f"{shared.url}/models/fake").json() == model
    assert shared.http.get(f"{shared.url}/models/other").status_code == 404


@pytest.mark.parametrize("path", ["/health", "/healthz", "/ready", "/readyz"])
def test_health(shared: LiveServer, path: str) -> None:
    assert shared.http.get(f"{shared.root}{path}").json() == {"status": "running"}


class TestMetrics:
    def test_names_that_operators_look_for(self, shared: LiveServer) -> None:
        shared.http.post(f"{shared.url}/chat/completions", json=chat_body("metrics"))
        response = shared.http.get(f"{shared.root}/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        for name in (
            "agentrt_requests_running ",
            "agentrt_requests_waiting ",
            'agentrt_kv_pages{state="free"}',
            'agentrt_kv_pages{state="cached"}',
            'agentrt_kv_pages{state="leased"}',
            'agentrt_kv_pages{state="pinned"}',
            "agentrt_prompt_tokens_total ",
            "agentrt_generation_tokens_total ",
            "agentrt_cached_tokens_total ",
            "agentrt_preemptions_total ",
            'agentrt_pins_total{outcome="handed_off"}',
            "agentrt_time_to_first_token_seconds_bucket",
            "agentrt_e2e_request_latency_seconds_bucket",
            "agentrt_inter_token_latency_seconds_bucket",
            'agentrt_requests_total{finish_reason="length"}',
        ):
            assert name in response.text

    def test_figures_add_up(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        for _ in range(3):
            live.http.post(f"{live.url}/chat/completions", json=chat_body("same"))
        live.wait_for("agentrt_turns_finished_total", 3)
        assert live.metric("agentrt_generation_tokens_total") == 24
        assert live.metric("agentrt_prompt_tokens_total") == 3 * len("<user>same<assistant>")
        assert live.metric("agentrt_cached_tokens_total") > 0
        assert live.metric("agentrt_time_to_first_token_seconds_count") == 3
        assert live.metric("agentrt_inter_token_latency_seconds_count") == 21
        assert live.metric("agentrt_e2e_request_latency_seconds_count") == 3
        states = ("free", "cached", "leased", "pinned")
        pages = {state: live.metric("agentrt_kv_pages", state=state) for state in states}
        assert pages["pinned"] > pages["leased"] == 0
        assert sum(pages.values()) == live.metric("agentrt_kv_pages_total")

    def test_unknown_field_names_are_bounded(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        many = {f"field_{number}": 1 for number in range(130)}
        live.http.post(f"{live.url}/chat/completions", json=chat_body(**many))
        assert live.metric("agentrt_unknown_fields_total", field="(other)") == 30


class TestLoad:
    def test_a_full_queue_says_when_to_come_back(self, serve: Callable[..., LiveServer]) -> None:
        live = serve(ServeSettings(drain=0.0, retry_after=7), max_seqs=1, max_waiting=1)
        live.runtime.throttle.slow()
        url, body = f"{live.url}/chat/completions", chat_body(stream=True, max_tokens=3000)
        with live.http.stream("POST", url, json=body):
            live.wait_for("agentrt_requests_running", 1)
            with live.http.stream("POST", url, json=body | {"user": "b"}):
                live.wait_for("agentrt_requests_waiting", 1)
                refused = live.http.post(url, json=chat_body("c"))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "7"
        assert refused.json()["error"]["type"] == "rate_limit_error"

    def test_a_large_body_is_refused(self, serve: Callable[..., LiveServer]) -> None:
        live = serve(ServeSettings(drain=0.0, max_body_bytes=1000))
        response = live.http.post(f"{live.url}/chat/completions", json=chat_body("x" * 1000))
        assert response.status_code == 413


class TestFailures:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_step_that_fails_is_told(
        self, serve: Callable[..., LiveServer], stream: bool
    ) -> None:
        live = serve()

        def broken(plan: StepPlan) -> None:
            raise RuntimeError("the device is gone")

        live.runtime.backend.before = broken
        response = live.http.post(f"{live.url}/chat/completions", json=chat_body(stream=stream))
        assert response.status_code == (200 if stream else 503)
        assert '"code":"engine_fault"' in response.text
        assert response.text.endswith("[DONE]\n\n") == stream
        live.wait_for("agentrt_requests_total", 1, finish_reason="failed")

    def test_a_bug_is_a_500_and_leaves_nothing_behind(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve()

        def broken(*arguments: object) -> None:
            raise ZeroDivisionError

        live.runtime.tokenizer.encode = broken
        response = live.http.post(f"{live.url}/chat/completions", json=chat_body())
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "ZeroDivisionError" in response.json()["error"]["message"]
        del live.runtime.tokenizer.encode
        again = live.http.post(f"{live.url}/chat/completions", json=chat_body())
        assert again.status_code == 200
        assert live.metric("agentrt_turns_placed_total", how="retry") == 1


class TestShutdown:
    def test_running_turns_may_end_and_new_ones_are_refused(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve(ServeSettings(drain=PATIENCE))
        live.runtime.throttle.slow()
        url = f"{live.url}/chat/completions"
        body = chat_body(stream=True, max_tokens=200)
        with live.http.stream("POST", url, json=body) as stream:
            live.signal()
            live.wait_until_draining()
            assert stream.read().decode().endswith("data: [DONE]\n\n")
        live.wait()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(live.address)

    def test_draining_refuses_new_turns(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        live.gate.drain()
        refused = live.http.post(f"{live.url}/chat/completions", json=chat_body())
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        ready = live.http.get(f"{live.root}/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert live.http.get(f"{live.root}/healthz").status_code == 200

    def test_what_outlasts_the_drain_is_cut_and_told(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve(ServeSettings(drain=0.05))
        live.runtime.throttle.slow()
        url, answers = f"{live.url}/chat/completions", []
        body = chat_body("b", max_tokens=3000)
        whole = threading.Thread(target=lambda: answers.append(live.http.post(url, json=body)))
        with live.http.stream("POST", url, json=body | {"stream": True}) as stream:
            whole.start()
            live.wait_for("agentrt_contexts", 2)
            live.signal()
            got = stream.read().decode()
        whole.join(PATIENCE)
        live.wait()
        assert '"code":"unavailable"' in got
        assert [answer.status_code for answer in answers] == [503]

    def test_a_second_signal_cuts_at_once(self, serve: Callable[..., LiveServer]) -> None:
        live = serve(ServeSettings(drain=3600.0))
        live.runtime.throttle.slow()
        url, body = f"{live.url}/chat/completions", chat_body(stream=True, max_tokens=3000)
        with live.http.stream("POST", url, json=body) as stream:
            live.signal()
            live.wait_until_draining()
            live.signal()
            assert '"code":"unavailable"' in stream.read().decode()
        live.wait()


class TestSettings:
    def test_api_keys_are_read_from_lines(self) -> None:
        text = "# keys\n\nk1 alice\n k2\tbob \n"
        assert parse_api_keys(text, where="f") == {"k1": "alice", "k2": "bob"}

    @pytest.mark.parametrize("text", ["", "# none\n", "key\n", "a b c\n", "k a\nk b\n"])
    def test_wrong_key_files_are_refused_without_showing_keys(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_api_keys(text, where="keys.txt")
        assert "keys.txt" in str(caught.value)

    def test_an_address_in_use_is_an_error_with_a_remedy(self) -> None:
        with bind("127.0.0.1", 0) as held:
            held.listen()
            with pytest.raises(ConfigError, match="--port"):
                bind("127.0.0.1", held.getsockname()[1])

    @pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "203.0.113.7"])
    def test_an_address_that_is_not_ours_is_one_too(self, host: str) -> None:
        with pytest.raises(ConfigError, match="Cannot listen"):
            bind(host, 0)
