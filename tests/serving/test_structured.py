"""Structured answers over HTTP: formats, schemas, expressions, and calls that are demanded."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from agentrt.engine.grammar import Grammar
from agentrt.serving.calls import CallReader, ToolCall
from agentrt.serving.errors import FieldError
from agentrt.serving.structured import Structure, called_grammar, structure
from tests.serving.conftest import LiveServer, chat_body, events

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("run", command={"enum": ["ls -la", 'echo "</tool_call>"']}), tool("stop")]


def post(live: LiveServer, body: dict[str, Any]) -> httpx.Response:
    return live.http.post(f"{live.url}/chat/completions", json=body, timeout=20)


def choice(live: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = post(live, body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def place(response: httpx.Response) -> tuple[str, str]:
    return response.headers["x-agentrt-program"], response.headers["x-agentrt-context"]


class TestFormats:
    @pytest.mark.parametrize(
        "fields",
        [
            {"response_format": {"type": "json_schema", "json_schema": {"schema": COLOUR}}},
            {"guided_json": COLOUR},
            {"guided_json": json.dumps(COLOUR)},
            {"structured_outputs": {"json": COLOUR, "regex": None}},
        ],
    )
    def test_a_schema_is_kept_to(self, shared: LiveServer, fields: dict[str, Any]) -> None:
        seen = set()
        for number in range(8):
            said = choice(shared, chat_body(f"paint {number}", max_tokens=200, **fields))
            assert said["finish_reason"] == "stop"
            value = json.loads(said["message"]["content"])
            assert value.keys() == {"colour", "n"}
            assert value["n"] <= 9
            seen.add(value["colour"])
        assert seen == {"red", "green"}

    def test_expressions_and_grammars_are_kept_to(self, shared: LiveServer) -> None:
        said = choice(shared, chat_body("when", max_tokens=50, guided_regex="[0-9]{4}-[0-9]{2}"))
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", said["message"]["content"])
        grammar = 'start: "(" (start | "x") ")"'
        said = choice(shared, chat_body("nest", max_tokens=500, guided_grammar=grammar))
        assert re.fullmatch(r"\(+x\)+", said["message"]["content"])
        asked = {"structured_outputs": {"choice": ["yes", "no"]}}
        assert choice(shared, chat_body("or", **asked))["message"]["content"] in ("yes", "no")

    def test_any_object_begins_as_one(self, shared: LiveServer) -> None:
        body = chat_body("object", max_tokens=30, response_format={"type": "json_object"})
        assert choice(shared, body)["message"]["content"].startswith("{")

    def test_a_limit_cuts_it_short(self, shared: LiveServer) -> None:
        said = choice(shared, chat_body("short", max_tokens=5, guided_json=COLOUR))
        assert (said["finish_reason"], len(said["message"]["content"])) == ("length", 5)

    def test_completions_keep_to_it_too(self, shared: LiveServer) -> None:
        body = {"prompt": "When?", "guided_regex": "[0-9]{3}", "max_tokens": 9}
        answer = shared.http.post(f"{shared.url}/completions", json=body).json()
        assert re.fullmatch("[0-9]{3}", answer["choices"][0]["text"])

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "param", "word"),
        [
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
                "response_format.json_schema.schema",
                word,
            )
            for schema, word in [
                ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
                ({"type": "array", "uniqueItems": True}, "uniqueItems"),
                ({"enum": []}, "matches nothing"),
                (False, "false"),
            ]
        ]
        + [({"guided_regex": "a"}, "guided_regex", "together with")],
    )
    def test_what_cannot_be_is_refused_before_the_first_token(
        self, shared: LiveServer, fields: dict[str, Any], param: str, word: str, stream: bool
    ) -> None:
        more = {"guided_json": COLOUR} if "guided_regex" in fields else {}
        response = post(shared, chat_body("no", stream=stream, **fields, **more))
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert word in error["message"]


class TestCalls:
    def test_a_call_is_yielded_where_one_is_required(self, shared: LiveServer) -> None:
        seen = set()
        for number in range(12):
            body = chat_body(f"act {number}", max_tokens=2000, tools=TOOLS, tool_choice="required")
            said = choice(shared, body)
            calls = said["message"]["tool_calls"]
            assert said["finish_reason"] == "tool_calls"
            assert said["message"]["content"] is None
            assert len({call["id"] for call in calls}) == len(calls) >= 1
            for call in calls:
                assert call["type"] == "function"
                arguments = json.loads(call["function"]["arguments"])
                assert arguments.keys() == (
                    {"command"} if call["function"]["name"] == "run" else set()
                )
                seen.add(call["function"]["name"])
        assert seen == {"run", "stop"}

    def test_a_named_function_is_called_once(self, shared: LiveServer) -> None:
        for named in ({"function": {"name": "stop"}}, {"name": "stop"}):
            asked = {"type": "function", **named}
            said = choice(shared, chat_body("x", max_tokens=200, tools=TOOLS, tool_choice=asked))
            [call] = said["message"]["tool_calls"]
            assert call["function"] == {"name": "stop", "arguments": "{}"}

    def test_calls_are_streamed_whole(self, shared: LiveServer) -> None:
        body = chat_body("stream", max_tokens=2000, tools=TOOLS, tool_choice="required")
        whole = choice(shared, body)
        body["stream"] = True
        with shared.http.stream("POST", f"{shared.url}/chat/completions", json=body) as response:
            chunks = [json.loads(event) for event in events(response)[:-1]]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": None}
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [call["index"] for call in calls] == list(range(len(calls)))
        assert [call["function"] for call in calls] == [
            call["function"] for call in whole["message"]["tool_calls"]
        ]
        assert not any(delta.get("content") for delta in deltas)
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_a_conversation_goes_on_with_the_call_in_it(self, shared: LiveServer) -> None:
        asked = {"max_tokens": 200, "tools": TOOLS, "tool_choice": "required"}
        body = chat_body("begin", **asked, parallel_tool_calls=False)
        first = post(shared, body)
        message = first.json()["choices"][0]["message"]
        [call] = message["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
        body["messages"] = [*body["messages"], message, result]
        second = post(shared, body)
        assert place(second) == place(first)
        again = {**message, "tool_calls": [{**call, "function": {"name": "x", "arguments": ""}}]}
        body["messages"] = [body["messages"][0], again, result]
        assert place(post(shared, body)) != place(first)

    def test_an_answer_that_is_cut_short_says_so(self, shared: LiveServer) -> None:
        said = choice(shared, chat_body("x", max_tokens=14, tools=TOOLS, tool_choice="required"))
        assert said["finish_reason"] == "length"
        assert said["message"]["content"].startswith("<tool_call>")
        assert "tool_calls" not in said["message"]

    def test_stop_texts_may_be_sent_along(self, shared: LiveServer) -> None:
        body = chat_body("x", max_tokens=2000, tools=TOOLS, tool_choice="required")
        said = choice(shared, body | {"stop": ["Observation:", "Calling tools:"]})
        assert said["finish_reason"] == "tool_calls"

    def test_a_tool_whose_parameters_cannot_be_is_refused(self, shared: LiveServer) -> None:
        tools = [tool("run", command={"type": "string", "pattern": "(?=a)"})]
        response = post(shared, chat_body("x", tools=tools, tool_choice="required"))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "tools"
        assert post(shared, chat_body("x", tools=tools)).status_code == 200


class TestParsing:
    def test_nothing_is_asked(self) -> None:
        for body in ({}, {"response_format": {"type": "text"}}, {"structured_outputs": {}}):
            assert structure(body) == Structure()

    def test_fields_name_themselves(self) -> None:
        asked = structure({"structured_outputs": {"regex": "a+"}})
        assert asked == Structure(Grammar.regex("a+", field="structured_outputs.regex"))

    def test_a_choice_of_tools(self) -> None:
        assert called_grammar("auto", TOOLS, several=True) is None
        one = called_grammar({"type": "function", "name": "stop"}, TOOLS, several=True)
        assert one == Grammar.tool_calls(TOOLS[1:], several=False)
        for wrong in ({"type": "function", "name": "other"}, {"type": "mcp"}, "any", 3):
            with pytest.raises(FieldError) as caught:
                called_grammar(wrong, TOOLS, several=True)
            assert caught.value.param == "tool_choice"


class TestReader:
    TEXT = (
        '<tool_call>{"name": "run", "arguments": {"command": "a}</tool_call>é"}}</tool_call>\n'
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    )
    CALLS = (ToolCall("run", '{"command": "a}</tool_call>é"}'), ToolCall("stop", "{}"))

    @pytest.mark.parametrize("size", [1, 2, 7, 500])
    def test_calls_come_out_as_they_are_complete(self, size: int) -> None:
        reader = CallReader()
        text = self.TEXT + "\n<tool_call>{"
        got = [
            call for at in range(0, len(text), size) for call in reader.push(text[at : at + size])
        ]
        assert tuple(got) == tuple(reader.calls) == self.CALLS
        assert reader.rest == "\n<tool_call>{"

    @pytest.mark.parametrize("text", ["", "hello", "<tool_call>[]</tool_call>", "<tool_call>{}"])
    def test_what_is_no_call_stays_text(self, text: str) -> None:
        reader = CallReader()
        assert reader.push(text) == []
        assert reader.rest == text
