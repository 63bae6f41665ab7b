"""Quotas at the HTTP edge: what waits, what is refused and when to come back, metrics by tenant."""

from __future__ import annotations

from collections.abc import Callable

from agentrt.scheduling.tenants import TenantSettings
from agentrt.serving.settings import ServeSettings
from tests.serving.conftest import LiveServer, chat_body

KEYS = {"ka": "alice", "kb": "bob"}


def ask(live: LiveServer, key: str, text: str = "hello") -> int:
    headers = {"authorization": f"Bearer {key}"}
    body = chat_body(text)
    return live.http.post(f"{live.url}/chat/completions", json=body, headers=headers).status_code


def test_a_used_up_quota_is_refused_with_the_time_to_come_back(
    serve: Callable[..., LiveServer],
) -> None:
    quota = TenantSettings(tokens_per_minute=20, queue_seconds=0)
    live = serve(ServeSettings(drain=0.0, api_keys=KEYS), tenants={"alice": quota})
    assert ask(live, "ka", "x" * 60) == 200
    live.wait_for("agentrt_tenant_turns_finished_total", 1, tenant="alice")
    refused = live.http.post(
        f"{live.url}/chat/completions",
        json=chat_body("again"),
        headers={"authorization": "Bearer ka"},
    )
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
    assert "alice" in error["message"]
    # More than 60 tokens over 20 a minute: minutes, not the server's general couple of seconds.
    assert 120 < int(refused.headers["retry-after"]) <= 400
    assert live.metric("agentrt_requests_refused_total", code="quota_exceeded") == 1
    # Nobody else is held up.
    assert ask(live, "kb", "x" * 60) == 200


def test_metrics_tell_tenants_apart(serve: Callable[..., LiveServer]) -> None:
    live = serve(ServeSettings(drain=0.0, api_keys=KEYS))
    assert [ask(live, key) for key in ("ka", "ka", "kb")] == [200, 200, 200]
    live.wait_for("agentrt_tenant_turns_finished_total", 2, tenant="alice")
    live.wait_for("agentrt_tenant_turns_finished_total", 1, tenant="bob")
    assert live.metric("agentrt_tenant_output_tokens_total", tenant="alice") == 16
    assert live.metric("agentrt_tenant_output_tokens_total", tenant="bob") == 8
    assert live.metric("agentrt_tenant_waiting", tenant="bob") == 0
    assert live.metric("agentrt_tenant_held_back_total", tenant="alice") == 0
