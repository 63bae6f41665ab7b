"""Programs over HTTP: names, prefixes, tenants, and every way to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentrt.serving.contexts import Limits
from agentrt.serving.settings import ServeSettings
from tests.serving.conftest import LiveServer, chat_body


class Agent:
    """A conversation that grows turn by turn, as agents hold it."""

    def __init__(self, live: LiveServer, text: str, **headers: str) -> None:
        self.live = live
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        self.headers = headers

    def turn(self, **fields: Any) -> tuple[str, str]:
        """Ask, take the answer into the history, and return program and context."""
        response = self.live.http.post(
            f"{self.live.url}/chat/completions",
            json=chat_body(messages=self.messages, **fields),
            headers=self.headers,
        )
        assert response.status_code == 200, response.text
        answer = response.json()["choices"][0]["message"]
        self.messages += [answer, {"role": "user", "content": [{"type": "text", "text": "go on"}]}]
        self.usage = response.json()["usage"]
        return response.headers["x-agentrt-program"], response.headers["x-agentrt-context"]


class TestPlacement:
    def test_a_conversation_without_a_name_is_one_program(self, shared: LiveServer) -> None:
        agent, other = Agent(shared, "find the bug"), Agent(shared, "find the bug")
        places = [agent.turn() for _ in range(4)]
        assert len(set(places)) == 1
        assert other.turn()[0] != places[0][0]
        assert agent.turn() == places[0]

    def test_prompts_follow_what_was_really_generated(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve()
        agent = Agent(live, "a task")
        agent.turn()
        agent.turn()
        (builder,) = live.runtime.builders
        answers = [message["content"] for message in agent.messages[1::2]]
        assert [message["content"] for _, message in builder.noted] == answers
        assert all(
            live.runtime.tokenizer.decode(tokens) == message["content"]
            for tokens, message in builder.noted
        )

    def test_names_of_two_tenants_never_meet(self, serve: Callable[..., LiveServer]) -> None:
        keys = {"key-a": "alice", "key-b": "bob"}
        live = serve(ServeSettings(drain=0.0, api_keys=keys))
        named = {"x-session-id": "same"}
        Agent(live, "task", authorization="Bearer key-a", **named).turn()
        Agent(live, "task", authorization="Bearer key-b", **named).turn()
        assert live.metric("agentrt_programs") == 2
        live.stop()
        assert sorted(live.runtime.ended) == ["alice/same", "bob/same"]


class TestKeys:
    def test_keys_are_asked_for_when_set(self, serve: Callable[..., LiveServer]) -> None:
        live = serve(ServeSettings(drain=0.0, api_keys={"secret": "alice"}))
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            refused = live.http.post(
                f"{live.url}/chat/completions", json=chat_body(), headers=headers
            )
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert live.http.get(f"{live.url}/models", headers=headers).status_code == 401
        for headers in ({"authorization": "bearer secret"}, {"x-api-key": "secret"}):
            assert live.http.get(f"{live.url}/models", headers=headers).status_code == 200
        assert live.http.get(f"{live.root}/healthz").status_code == 200

    def test_without_keys_any_authorization_will_do(self, shared: LiveServer) -> None:
        assert Agent(shared, "hello", authorization="Bearer whatever").turn()


class TestEnds:
    def test_a_final_header_ends_the_program_after_its_turn(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve()
        agent = Agent(live, "task", **{"x-session-id": "p"})
        agent.turn()
        assert live.runtime.ended == []
        agent.headers["x-dynamo-session-final"] = "true"
        agent.turn()
        assert live.runtime.ended == ["default/p"]
        del agent.headers["x-dynamo-session-final"]
        assert agent.turn() == ("p", "main")
        assert live.metric("agentrt_programs") == 1

    def test_a_last_step_in_the_body_does_so_too(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "task").turn(vllm_xargs={"job_id": "j", "is_last_step": 1})
        assert live.runtime.ended == ["default/j"]
        assert live.metric("agentrt_programs") == 0

    def test_deleting_ends_it_and_its_running_turns(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        live.runtime.throttle.slow()
        body = chat_body(stream=True, max_tokens=3000, program_id="a/b")
        with live.http.stream("POST", f"{live.url}/chat/completions", json=body) as stream:
            assert live.http.delete(f"{live.url}/programs/a/b").json()["deleted"] is True
            got = stream.read().decode()
        assert '"code":"cancelled"' in got
        assert live.http.delete(f"{live.url}/programs/a/b").status_code == 404
        live.wait_for("agentrt_kv_pages", 0, state="leased")

    def test_an_idle_program_ends_by_itself(self, serve: Callable[..., LiveServer]) -> None:
        limits = Limits(idle=0.05)
        live = serve(ServeSettings(drain=0.0, sweep=0.01, limits=limits))
        Agent(live, "task").turn()
        live.wait_for("agentrt_programs", 0)
        assert live.runtime.ended == ["default/unnamed-1"]

    def test_all_end_with_the_server(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "one", **{"x-session-id": "p"}).turn()
        Agent(live, "two").turn()
        live.stop()
        assert sorted(live.runtime.ended) == ["default/p", "default/unnamed-1"]


def test_malformed_ids_are_counted_and_ignored(shared: LiveServer) -> None:
    field = "body:program_id"
    before = shared.metric("agentrt_hints_total", field=field, outcome="malformed")
    program, _ = Agent(shared, "task").turn(program_id=["x"])
    assert program.startswith("unnamed-")
    assert shared.metric("agentrt_hints_total", field=field, outcome="malformed") == before + 1
