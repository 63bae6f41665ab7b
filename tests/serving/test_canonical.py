"""Messages that clients changed are the same messages."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.serving.canonical import answered, chain, for_template, normalise

TEXT = st.text(max_size=12)
ARGUMENTS = st.dictionaries(TEXT, st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=3)


def message(draw: st.DrawFn) -> dict[str, Any]:
    role = draw(st.sampled_from(["system", "developer", "user", "assistant", "tool"]))
    made: dict[str, Any] = {"role": role, "content": draw(TEXT)}
    if role == "assistant" and draw(st.booleans()):
        function = {"name": draw(TEXT), "arguments": json.dumps(draw(ARGUMENTS))}
        made["tool_calls"] = [{"id": draw(TEXT), "type": "function", "function": function}]
    if role == "tool":
        made["tool_call_id"] = draw(TEXT)
    return made


MESSAGES = st.lists(st.composite(message)(), min_size=1, max_size=5)


def as_a_client_returns_it(draw: st.DrawFn, sent: dict[str, Any]) -> dict[str, Any]:
    """Do to a message what clients were seen to do."""
    got = dict(reversed(sent.items()))
    got["provider_specific_fields"] = {"x": 1}
    text = sent["content"]
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(text)))
        parts = [text[:cut], text[cut:]]
        got["content"] = [{"type": "text", "text": part} for part in parts]
    elif text == "":
        got["content"] = None
        if draw(st.booleans()):
            del got["content"]
    if "tool_calls" in sent:
        got["tool_calls"] = [
            {"function": {"arguments": recoded(draw, call), "name": call["function"]["name"]}}
            | {"type": "function", "id": call["id"], "index": 0}
            for call in sent["tool_calls"]
        ]
    elif sent["role"] == "assistant":
        got["tool_calls"] = draw(st.sampled_from([None, []]))
    if sent["role"] == "tool":
        got["name"] = "bash"
    return got


def recoded(draw: st.DrawFn, call: dict[str, Any]) -> str:
    arguments = json.loads(call["function"]["arguments"])
    shuffled = dict(draw(st.permutations(list(arguments.items()))))
    return json.dumps(shuffled, separators=draw(st.sampled_from([(",", ":"), (" , ", " : ")])))


@settings(deadline=None, max_examples=60)
@given(st.data(), MESSAGES)
def test_what_comes_back_changed_is_the_same(data: st.DataObject, sent: list[Any]) -> None:
    got = [data.draw(st.composite(as_a_client_returns_it)(each)) for each in sent]
    assert normalise(got) == normalise(sent)
    assert chain("scope", normalise(got)) == chain("scope", normalise(sent))


@settings(deadline=None, max_examples=60)
@given(MESSAGES)
def test_normal_form_is_stable(sent: list[Any]) -> None:
    once = normalise(sent)
    assert normalise(once) == once


@settings(deadline=None, max_examples=60)
@given(MESSAGES, MESSAGES)
def test_chains_agree_exactly_on_shared_prefixes(one: list[Any], two: list[Any]) -> None:
    first, second = normalise(one), normalise(two)
    pairs = zip(chain("s", first), chain("s", second), strict=False)
    for length, (left, right) in enumerate(pairs, start=1):
        assert (left == right) == (trimmed(first[:length]) == trimmed(second[:length]))


def trimmed(messages: list[Any]) -> list[Any]:
    return [
        each | {"content": each["content"].strip()} if each["role"] == "assistant" else each
        for each in messages
    ]


@settings(deadline=None, max_examples=60)
@given(MESSAGES)
def test_an_answer_extends_the_chain(sent: list[Any]) -> None:
    asked = normalise(sent)
    answer = {"role": "assistant", "content": "so be it\n"}
    assert chain("s", [*asked, answer | {"content": " so be it"}])[-1] == answered(
        chain("s", asked)[-1], answer
    )
    assert chain("s", asked)[-1] != chain("t", asked)[-1]


def test_arguments_that_are_no_json_stay_text() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "{oops"}}
    (got,) = normalise([{"role": "assistant", "tool_calls": [call]}])
    assert got["tool_calls"][0]["function"]["arguments"] == "{oops"


def test_templates_see_one_system_message() -> None:
    messages = normalise(
        [
            {"role": "developer", "content": "a"},
            {"role": "system", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "developer", "content": "d"},
        ]
    )
    assert for_template(messages) == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": "d"},
    ]
