"""Hints over HTTP: they reach the scheduler, are counted, and change no token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.model.make import make_model
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.scheduling.hints import NO_HINTS
from agentrt.serving.settings import ServeSettings
from tests.hints.test_read import PLACED, merged, placed
from tests.serving.conftest import LiveServer, chat_body, running
from tests.serving.test_programs import Agent

HONEST: dict[str, Any] = {
    "priority": -3,
    "vllm_xargs": {"this_func_call": "bash", "last_func_call": "git"},
    "nvext": {"agent_hints": {"osl": 8}, "cache_control": {"type": "ephemeral", "ttl": "5m"}},
    "agentrt": {"deadline_s": 30, "remaining_turns": 2, "gap_s": 1.5, "step": "fix", "agent": "a"},
}


class TestReach:
    def test_a_turn_carries_its_hints(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "task").turn(**HONEST)
        ((context, next_tool, last, hints),) = live.runtime.hints
        assert (context, next_tool, last) == ("main", "bash", False)
        assert (hints.priority, hints.last_tool, hints.output_tokens) == (3, "git", 8)
        assert (hints.keep_seconds, hints.remaining_turns, hints.gap_seconds) == (300.0, 2, 1.5)
        assert (hints.step, hints.agent, hints.parent) == ("fix", "a", None)
        assert hints.turn_deadline is not None
        assert 0 < hints.turn_deadline - live.runtime.clock() <= 30

    def test_a_turn_without_hints_has_none(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "task").turn()
        assert live.runtime.hints == [("main", None, False, NO_HINTS)]

    def test_a_completion_carries_them_too(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        body = {"prompt": "2 + 2", "max_tokens": 4, "program_id": "p", **HONEST}
        assert live.http.post(f"{live.url}/completions", json=body).status_code == 200
        ((_, next_tool, last, hints),) = live.runtime.hints
        assert (next_tool, last, hints.priority) == ("bash", False, 3)


class TestSubAgents:
    def test_one_with_a_session_of_its_own_is_a_context_of_its_root(
        self, serve: Callable[..., LiveServer]
    ) -> None:
        live = serve()
        root = Agent(live, "task", **{"x-session-id": "root"})
        child = Agent(live, "look", **{"x-session-id": "kid", "x-parent-session-id": "root"})
        assert root.turn() == ("root", "main")
        assert child.turn() == ("root", "context-2")
        grandchild = Agent(live, "deeper", **{"x-session-id": "g", "x-parent-session-id": "kid"})
        assert grandchild.turn() == ("root", "context-3")
        assert child.turn() == ("root", "context-2")
        parents = [hints.parent for _, _, _, hints in live.runtime.hints]
        assert parents == [None, "main", "context-2", "main"]

    def test_its_end_is_not_its_roots(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "task", **{"x-session-id": "root"}).turn()
        ending = {"x-dynamo-session-final": "true"}
        Agent(live, "look", **{"x-session-id": "k", "x-parent-session-id": "root"}, **ending).turn()
        _, _, last, hints = live.runtime.hints[-1]
        assert (last, hints.keep_seconds) == (False, 0.0)
        assert (live.runtime.ended, live.runtime.left) == ([], [("default/root", "context-2")])
        live.wait_for("agentrt_pins", 1)
        Agent(live, "more", **{"x-session-id": "root"}, **ending).turn()
        assert live.runtime.hints[-1][2]
        live.wait_for("agentrt_programs", 0)
        assert live.runtime.ended == ["default/root"]

    def test_its_deletion_is_not_its_roots(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        Agent(live, "task", **{"x-session-id": "root"}).turn()
        Agent(live, "look", **{"x-session-id": "k", "x-parent-session-id": "root"}).turn()
        live.wait_for("agentrt_pins", 2)
        assert live.http.delete(f"{live.url}/programs/k").status_code == 200
        assert live.http.delete(f"{live.url}/programs/k").status_code == 404
        assert live.runtime.left == [("default/root", "context-2")]
        live.wait_for("agentrt_pins", 1)
        assert live.http.delete(f"{live.url}/programs/root").status_code == 200
        live.wait_for("agentrt_pins", 0)

    def test_agents_of_one_session(self, serve: Callable[..., LiveServer]) -> None:
        live = serve()
        session = {"x-claude-code-session-id": "s"}
        Agent(live, "task", **session).turn()
        Agent(live, "look", **session, **{"x-claude-code-agent-id": "a"}).turn()
        nested = {"x-claude-code-agent-id": "b", "x-claude-code-parent-agent-id": "a"}
        Agent(live, "deeper", **session, **nested).turn()
        parents = [(context, hints.parent) for context, _, _, hints in live.runtime.hints]
        assert parents == [("main", None), ("context-2", "main"), ("context-3", "context-2")]


class TestCounted:
    def test_each_outcome(self, shared: LiveServer) -> None:
        def counted(field: str, outcome: str) -> float:
            return shared.metric("agentrt_hints_total", field=field, outcome=outcome)

        expected = [
            ("body:priority", "malformed"),
            ("body:agentrt.ttl_s", "clamped"),
            ("body:cache_control", "overridden"),
            ("body:kv_hints:kv.fetch", "unsupported"),
            ("body:agentrt.*", "unknown"),
            ("body:vllm_xargs.job_id", "used"),
        ]
        before = [counted(*each) for each in expected]
        response = shared.http.post(
            f"{shared.url}/chat/completions",
            json=chat_body(
                priority="high",
                agentrt={"ttl_s": 1e9, "colour": "red"},
                cache_control={"type": "ephemeral"},
                kv_hints={
                    "protocol_version": "0.1",
                    "actions": [{"action_id": "1", "action_type": "kv.fetch"}],
                },
                vllm_xargs={"job_id": "counted"},
            ),
        )
        assert response.status_code == 200
        assert [counted(*each) for each in expected] == [count + 1 for count in before]
        assert response.headers["x-agentrt-hints-ignored"] == (
            "body:priority malformed, body:kv_hints:kv.fetch unsupported, body:agentrt.* unknown"
        )

    def test_names_that_clients_choose_are_bounded(self, shared: LiveServer) -> None:
        for start in range(0, 300, 50):
            rows = [{"action_id": "1", "action_type": f"a{start + n}"} for n in range(50)]
            kv_hints = {"protocol_version": "0.1", "actions": rows}
            response = shared.http.post(
                f"{shared.url}/chat/completions", json=chat_body(kv_hints=kv_hints)
            )
            assert response.status_code == 200
        assert shared.metric("agentrt_hints_total", field="(other)", outcome="unsupported") > 100


def renamed(turn: int) -> dict[str, Any]:
    """Return another program's name each turn."""
    return {"job_id": f"job-{turn}"}


def last_words(turn: int) -> dict[str, Any]:
    """Say each turn that it is the last one."""
    return {"job_id": "undying", "vllm_xargs": {"is_last_step": 1}}


def lies(turn: int) -> dict[str, Any]:
    """Return hints that contradict each other, and what came before."""
    return {
        "program_id": f"another-{turn}",
        "priority": 10**9,
        "cache_control": {"type": "ephemeral", "ttl": -5},
        "vllm_xargs": {"this_func_call": "rm", "last_func_call": "mv", "is_last_step": 1},
        "agent_hint": {"parent_session_id": f"another-{turn - 1}"},
        "agentrt": {
            "deadline_s": 0, "output_tokens": 1, "remaining_turns": 0, "gap_s": "nan", "step": "?",
        },
        "kv_hints": {"protocol_version": "9"},
        "nvext": 7,
    }  # fmt: skip


def conversation(
    live: LiveServer, fields: Callable[[int], dict[str, Any]], **asked: Any
) -> list[tuple[str, int]]:
    """Return each answer's text and its prompt's tokens."""
    agent = Agent(live, "Find the fault.")
    told: list[tuple[str, int]] = []
    for turn in range(4):
        agent.turn(**asked, **fields(turn))
        told.append((agent.messages[-2]["content"], agent.usage["prompt_tokens"]))
    return told


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Return a server over a real engine with a tiny model."""
    directory: Path = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory, size="tiny", dtype="float32")
    config = RuntimeConfig(model=str(directory), pool_tokens=16_384, threads=1, sandbox=None)
    with running(lambda: Runtime.open(config), ServeSettings(drain=0.0)) as live:
        yield live


class TestNoToken:
    def test_with_a_fake_engine(self, shared: LiveServer) -> None:
        plain = conversation(shared, lambda turn: {})
        assert conversation(shared, lambda turn: HONEST) == plain
        for liar in (renamed, last_words, lies):
            assert conversation(shared, liar) == plain

    @pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
    def test_with_a_real_model(self, real: LiveServer, sampling: dict[str, Any]) -> None:
        asked = {"model": "tiny", "max_tokens": 16, **sampling}
        plain = conversation(real, lambda turn: {}, **asked)
        assert conversation(real, lambda turn: HONEST, **asked) == plain
        for liar in (renamed, last_words, lies):
            assert conversation(real, liar, **asked) == plain
        assert len({text for text, _ in plain}) > 1

    @settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(PLACED.filter(lambda part: part[0].startswith("body:")), max_size=6))
    def test_anything_at_all(self, shared: LiveServer, parts: list[tuple[str, Any]]) -> None:
        body: dict[str, Any] = {}
        for label, value in parts:
            body = merged(body, placed(label, value)[0])
        texts = []
        for asked in (chat_body(), chat_body() | body):
            # Python's own JSON has NaN and endless numbers, as some clients' has
            response = shared.http.post(
                f"{shared.url}/chat/completions",
                content=json.dumps(asked),
                headers={"content-type": "application/json"},
            )
            assert response.status_code == 200, response.text
            texts.append(response.json()["choices"][0]["message"]["content"])
        assert texts[0] == texts[1]
