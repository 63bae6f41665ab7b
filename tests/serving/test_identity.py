"""Who is calling: names in their order, hints, and what is malformed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.identity import SOURCES, identify, scoped_id

PLACES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("body:program_id", {"program_id": "X"}, {}),
    ("body:job_id", {"job_id": "X"}, {}),
    ("body:session_id", {"session_id": "X"}, {}),
    ("body:agent_hint.session_id", {"agent_hint": {"session_id": "X"}}, {}),
    ("body:agent_hints.workflow_id", {"agent_hints": {"workflow_id": "X"}}, {}),
    (
        "body:nvext.agent_context.program_id",
        {"nvext": {"agent_context": {"program_id": "X"}}},
        {},
    ),
    (
        "body:nvext.agent_context.session_id",
        {"nvext": {"agent_context": {"session_id": "X"}}},
        {},
    ),
    ("body:agentrt.program", {"agentrt": {"program": "X"}}, {}),
    ("body:vllm_xargs.job_id", {"vllm_xargs": {"job_id": "X"}}, {}),
    ("body:extra_args.job_id", {"extra_args": {"job_id": "X"}}, {}),
    ("body:vllm_xargs.agentic_context", {"vllm_xargs": {"agentic_context": "X"}}, {}),
    ("header:x-dynamo-session-id", {}, {"x-dynamo-session-id": "X"}),
    ("header:x-claude-code-session-id", {}, {"x-claude-code-session-id": "X"}),
    ("header:thread-id", {}, {"thread-id": "X"}),
    ("header:session-id", {}, {"session-id": "X"}),
    ("header:x-session-id", {}, {"x-session-id": "X"}),
    ("header:x-litellm-session-id", {}, {"x-litellm-session-id": "X"}),
    ("header:x-session-affinity", {}, {"x-session-affinity": "X"}),
    ("header:x-correlation-id", {}, {"x-correlation-id": "X"}),
    ("body:client_metadata.thread_id", {"client_metadata": {"thread_id": "X"}}, {}),
    ("body:client_metadata.session_id", {"client_metadata": {"session_id": "X"}}, {}),
    ("body:metadata.user_id", {"metadata": {"user_id": json.dumps({"session_id": "X"})}}, {}),
]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge dictionaries, those inside them too."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged([old, value]) if both else value
    return result


def renamed(part: Any, name: str) -> Any:
    return json.loads(json.dumps(part).replace("X", name))


class TestNames:
    def test_every_source_is_tried_here(self) -> None:
        assert [label for label, _, _ in PLACES] == [source.label for source in SOURCES]

    @pytest.mark.parametrize(("label", "body", "headers"), PLACES)
    def test_each_place_alone(
        self, label: str, body: dict[str, Any], headers: dict[str, str]
    ) -> None:
        who = identify(body, headers)
        assert (who.program, who.source, who.malformed) == ("X", label, ())

    def test_the_first_place_wins(self) -> None:
        for first, second in itertools.combinations(range(len(PLACES)), 2):
            label, *one = renamed(PLACES[first], "A")
            _, *two = renamed(PLACES[second], "B")
            body, headers = merged([one[0], two[0]]), {**two[1], **one[1]}
            who = identify(body, headers)
            assert (who.program, who.source) == ("A", label)

    @pytest.mark.parametrize(
        "body",
        [
            {"user": "X", "safety_identifier": "X"},
            {"metadata": {"user_id": "user-7", "session": "X"}},
            {"metadata": {"user_id": "{broken"}},
            {"metadata": {"user_id": 7}},
            {"prompt_cache_key": "X"},
        ],
    )
    def test_what_is_never_identity(self, body: dict[str, Any]) -> None:
        who = identify(body, {"x-request-id": "X", "x-irid": "X", "user-agent": "X"})
        assert (who.program, who.source, who.malformed) == (None, "none", ())

    @pytest.mark.parametrize("bad", ["", "  ", "x" * 257, "a\nb", [], {}, 1.5, True])
    def test_a_malformed_name_is_counted_and_the_next_is_taken(self, bad: Any) -> None:
        who = identify({"program_id": bad, "job_id": 42}, {})
        assert (who.program, who.source) == ("42", "body:job_id")
        assert who.malformed == ("body:program_id",)

    def test_agentic_context_may_be_an_object(self) -> None:
        assert identify({"vllm_xargs": {"agentic_context": {"program_id": "p"}}}, {}).program == "p"
        assert identify({"vllm_xargs": {"agentic_context": {"task": "p"}}}, {}).program is None


class TestHints:
    def test_next_tool(self) -> None:
        who = identify({"vllm_xargs": {"this_func_call": "bash", "last_func_call": "git"}}, {})
        assert who.next_tool == "bash"
        assert not who.last

    @pytest.mark.parametrize("flag", [1, True, "1", "true", " True "])
    def test_last_step(self, flag: Any) -> None:
        assert identify({"vllm_xargs": {"is_last_step": flag}}, {}).last
        assert identify({}, {"x-dynamo-session-final": str(flag)}).last

    @pytest.mark.parametrize("flag", [0, False, "0", "false"])
    def test_not_the_last_step(self, flag: Any) -> None:
        who = identify({"vllm_xargs": {"is_last_step": flag}}, {})
        assert (who.last, who.malformed) == (False, ())

    @pytest.mark.parametrize("flag", [2, "maybe", [], {"x": 1}, 0.5])
    def test_malformed_hints_are_counted(self, flag: Any) -> None:
        who = identify({"vllm_xargs": {"is_last_step": flag, "this_func_call": 3}}, {})
        assert not who.last
        assert who.next_tool is None
        assert set(who.malformed) == {
            "body:vllm_xargs.is_last_step",
            "body:vllm_xargs.this_func_call",
        }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = sorted(
    {part for source in SOURCES for part in source.label.split(":")[1].split(".")}
    | {"is_last_step", "this_func_call", "extra_args"}
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
    ),
    st.dictionaries(st.sampled_from(KEYS), st.text(max_size=20)),
)
def test_never_raises_and_names_are_usable(body: dict[str, Any], headers: dict[str, str]) -> None:
    who = identify(body, headers)
    assert who.program is None or (0 < len(who.program) <= 256 and who.program.isprintable())
    assert (who.program is None) == (who.source == "none")


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_scoped_ids_never_meet(one: tuple[str, str], two: tuple[str, str]) -> None:
    assert (scoped_id(*one) == scoped_id(*two)) == (one == two)
