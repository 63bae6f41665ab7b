"""The chat endpoint's shapes, byte for byte as clients read them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serving.conftest import LiveServer, chat_body, events


def post(live: LiveServer, body: dict[str, Any], **more: Any) -> httpx.Response:
    return live.http.post(f"{live.url}/chat/completions", json=body, timeout=20, **more)


def streamed(live: LiveServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    with live.http.stream(
        "POST", f"{live.url}/chat/completions", json=body | {"stream": True}, timeout=20
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        got = events(response)
    assert got[-1] == "[DONE]"
    return [json.loads(event) for event in got[:-1]]


class TestPlain:
    def test_has_the_documented_shape(self, shared: LiveServer) -> None:
        answer = post(shared, chat_body("shape")).json()
        assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "fake"
        (choice,) = answer["choices"]
        assert choice["index"] == 0
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"] is None
        assert choice["message"]["role"] == "assistant"
        assert len(choice["message"]["content"]) == 8
        prompt = len("<user>shape<assistant>")
        assert answer["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": 8,
            "total_tokens": prompt + 8,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def test_ends_with_stop_at_a_stop_text(self, shared: LiveServer) -> None:
        whole = post(shared, chat_body("stop")).json()["choices"][0]["message"]["content"]
        body = chat_body("stop", stop=[whole[3:5]])
        choice = post(shared, body).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == whole[: whole.index(whole[3:5])]
        alone = post(shared, chat_body("stop", stop=whole[3:5])).json()["choices"][0]
        assert alone["message"] == choice["message"]

    def test_takes_max_completion_tokens_first(self, shared: LiveServer) -> None:
        answer = post(shared, chat_body(max_completion_tokens=3)).json()
        assert answer["usage"]["completion_tokens"] == 3

    def test_ends_at_the_end_token(self, shared: LiveServer) -> None:
        body = chat_body("eos", ignore_eos=False, max_tokens=2000)
        answer = post(shared, body).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "\n" not in answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] < 2000

    def test_counts_what_the_prefix_tree_had(self, shared: LiveServer) -> None:
        first = post(shared, chat_body("cache me if you can")).json()
        again = post(shared, chat_body("cache me if you can")).json()
        before = first["usage"]["prompt_tokens_details"]["cached_tokens"]
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert before < cached < again["usage"]["prompt_tokens"]
        assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]

    def test_answers_concurrent_requests_one_by_one(self, shared: LiveServer) -> None:
        ids = {post(shared, chat_body("ids")).json()["id"] for _ in range(3)}
        assert len(ids) == 3


class TestStreamed:
    def test_has_the_documented_order(self, shared: LiveServer) -> None:
        whole = post(shared, chat_body("order")).json()
        first, *middle, last = streamed(shared, chat_body("order"))
        assert first["choices"] == [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ]
        assert last["choices"][0]["delta"] == {}
        assert last["choices"][0]["finish_reason"] == "length"
        texts = [event["choices"][0]["delta"]["content"] for event in middle]
        assert "".join(texts) == whole["choices"][0]["message"]["content"]
        assert len(texts) == 8
        everything = [first, *middle, last]
        assert len({event["id"] for event in everything}) == 1
        assert len({event["created"] for event in everything}) == 1
        assert {event["object"] for event in everything} == {"chat.completion.chunk"}
        assert all("usage" not in event for event in everything)

    def test_sends_usage_only_when_asked(self, shared: LiveServer) -> None:
        options = {"include_usage": True}
        *_, end, usage = streamed(shared, chat_body("usage", stream_options=options))
        assert end["choices"][0]["finish_reason"] == "length"
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 8
        assert "cached_tokens" in usage["usage"]["prompt_tokens_details"]

    def test_sends_usage_with_every_chunk_when_asked(self, shared: LiveServer) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        got = streamed(shared, chat_body("usage2", stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in got]
        assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
        prompts = {event["usage"]["prompt_tokens"] for event in got}
        assert prompts == {len("<user>usage2<assistant>")}

    def test_tells_program_and_context(self, shared: LiveServer) -> None:
        with shared.http.stream(
            "POST",
            f"{shared.url}/chat/completions",
            json=chat_body("head", stream=True),
            headers={"X-Session-Id": "ses_1/ä".encode("latin-1")},
        ) as response:
            assert response.headers["x-agentrt-program"] == "ses_1/%C3%A4"
            assert response.headers["x-agentrt-context"] == "main"
            response.read()


class TestMessages:
    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, "b"]}],
            [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}],
            [{"role": "system", "content": "x"}] * 2 + [{"role": "user", "content": "y"}],
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None},
                {"role": "user", "content": "y"},
            ],
            [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "provider_specific_fields": {"refusal": None},
                    "tool_calls": [
                        {"id": "c1", "function": {"name": "bash", "arguments": '{"a":  1}'}}
                    ],
                },
                {
                    "role": "tool",
                    "tool_call_id": "c1",
                    "name": "bash",
                    "content": [{"type": "text", "text": "ok"}],
                },
            ],
        ],
    )
    def test_accepts_all_forms(self, shared: LiveServer, messages: list[Any]) -> None:
        assert post(shared, chat_body(messages=messages)).status_code == 200

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            (None, "messages"),
            ([], "messages"),
            ("hello", "messages"),
            ([3], "messages[0]"),
            ([{"role": "wizard", "content": "x"}], "messages[0].role"),
            ([{"role": ["user"], "content": "x"}], "messages[0].role"),
            ([{"role": "user", "content": 3}], "messages[0].content"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
                "messages[0].content[0]",
            ),
            ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls[0]"),
            ([{"role": "assistant", "tool_calls": {"id": "x"}}], "messages[0].tool_calls"),
        ],
    )
    def test_names_what_is_wrong(self, shared: LiveServer, messages: Any, param: str) -> None:
        response = post(shared, chat_body(messages=messages))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param

    def test_gives_tools_to_the_template(self, shared: LiveServer) -> None:
        tool = {"type": "function", "function": {"name": "bash", "parameters": {}}, "strict": True}
        odd = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}]
        plain = post(shared, chat_body("tools")).json()["usage"]["prompt_tokens"]
        body = chat_body("tools", tools=[tool, *odd], tool_choice="auto")
        with_tools = post(shared, body).json()["usage"]["prompt_tokens"]
        assert with_tools > plain
        only_odd = post(shared, chat_body("tools", tools=odd)).json()["usage"]["prompt_tokens"]
        assert only_odd == plain


class TestFields:
    def test_unknown_fields_are_accepted_and_counted(self, shared: LiveServer) -> None:
        name = "frobnicate"
        before = shared.metric("agentrt_unknown_fields_total", field=name)
        assert post(shared, chat_body(**{name: {"x": 1}}, user="me", store=True)).status_code == 200
        assert shared.metric("agentrt_unknown_fields_total", field=name) == before + 1
        assert shared.metric("agentrt_unknown_fields_total", field="store") == 0

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_tokens", 0),
            ("max_tokens", "many"),
            ("temperature", -1),
            ("temperature", "hot"),
            ("top_p", 0),
            ("top_k", -2),
            ("min_p", 2),
            ("seed", "x"),
            ("presence_penalty", 3),
            ("repetition_penalty", 0),
            ("stop", 3),
            ("stop", [""]),
            ("stop", [1]),
            ("stop_token_ids", "7"),
            ("stream", "yes"),
            ("ignore_eos", 1),
            ("n", 2),
            ("response_format", {"type": "grammar"}),
            ("response_format", "json"),
            ("structured_outputs", {"json": {}, "regex": "a"}),
            ("structured_outputs", {"structural_tag": {}}),
            ("structured_outputs", ["json"]),
            ("guided_json", 3),
            ("guided_json", "{"),
            ("guided_json", {"type": "foo"}),
            ("guided_grammar", "start: nothing"),
            ("guided_choice", []),
            ("guided_choice", "yes"),
            ("guided_choice", ["yes", 1]),
            ("guided_choice", ["yes", ""]),
            ("guided_choice", ["yes", "yes"]),
            ("guided_choice", [str(number) for number in range(1001)]),
            ("guided_regex", "(?=yes)"),
            ("guided_regex", ""),
            ("logit_bias", {"5": 1}),
            ("tool_choice", "required"),
            ("tool_choice", {"type": "function", "function": {"name": "f"}}),
            ("tools", {"type": "function"}),
            ("top_logprobs", 3),
            ("model", 3),
            ("stream_options", 3),
        ],
    )
    def test_known_fields_are_checked(self, shared: LiveServer, field: str, value: Any) -> None:
        response = post(shared, chat_body(**{field: value}))
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == field
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) > len(field) + 10

    def test_harmless_values_are_accepted(self, shared: LiveServer) -> None:
        body = chat_body(
            n=1,
            response_format={"type": "text"},
            logit_bias={},
            guided_choice=None,
            tool_choice="none",
            top_k=-1,
            temperature=0,
            top_p=0.9,
            min_p=0.1,
            seed=4,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.1,
            stop=None,
            tools=[],
            stream=False,
            stream_options=None,
        )
        assert post(shared, body).status_code == 200


class TestChoices:
    """``guided_choice``: the answer is exactly one of these texts."""

    def test_the_answer_is_one_of_them(self, shared: LiveServer) -> None:
        choices = ["restart", "restart twice", "roll back", "wait"]
        seen = set()
        for number in range(30):
            body = chat_body(f"What now? ({number})", guided_choice=choices)
            answer = post(shared, body | {"max_tokens": 13}).json()
            assert answer["choices"][0]["finish_reason"] == "stop"
            text = answer["choices"][0]["message"]["content"]
            # One token a letter, and the end token where another choice goes on.
            assert answer["usage"]["completion_tokens"] == len(text) + (text == "restart")
            seen.add(text)
        assert seen == set(choices)

    def test_streamed_without_a_limit(self, shared: LiveServer) -> None:
        body = chat_body("streamed", guided_choice=["yes", "no"])
        del body["max_tokens"]
        chunks = streamed(shared, body)
        deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
        assert "".join(deltas) in ("yes", "no")
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

    def test_for_completions(self, shared: LiveServer) -> None:
        body = {"prompt": "Say it:", "guided_choice": ["this", "that"]}
        answer = shared.http.post(f"{shared.url}/completions", json=body).json()
        assert answer["choices"][0]["text"] in ("this", "that")

    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ({"stop": "\n"}, "guided_choice"),
            ({"stop_token_ids": [3]}, "guided_choice"),
            ({"guided_choice": ["yes", "much too long"]}, "at least 13"),
            ({"guided_choice": ["ja", "wörtlich"]}, "'wörtlich'"),
            ({"guided_choice": []}, "Set guided_choice to"),
        ],
    )
    def test_what_cannot_be_is_refused_with_a_remedy(
        self, shared: LiveServer, fields: dict[str, Any], word: str
    ) -> None:
        response = post(shared, chat_body(**({"guided_choice": ["yes", "no"]} | fields)))
        assert response.status_code == 400
        assert word in response.json()["error"]["message"]


class TestErrors:
    def test_unknown_model(self, shared: LiveServer) -> None:
        response = post(shared, chat_body(model="gpt-9"))
        assert response.status_code == 404
        assert "'fake'" in response.json()["error"]["message"]

    def test_no_model_means_the_one_served(self, shared: LiveServer) -> None:
        assert post(shared, chat_body(model=None)).status_code == 200

    @pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
    def test_no_json_object(self, shared: LiveServer, raw: bytes) -> None:
        response = shared.http.post(f"{shared.url}/chat/completions", content=raw)
        assert response.status_code == 400
        assert "JSON" in response.json()["error"]["message"]

    def test_chunked_request_bodies(self, shared: LiveServer) -> None:
        raw = json.dumps(chat_body("x" * 300)).encode()
        parts = iter([raw[:50], raw[50:]])
        assert shared.http.post(f"{shared.url}/chat/completions", content=parts).status_code == 200

    def test_too_long_for_the_pool(self, shared: LiveServer) -> None:
        response = post(shared, chat_body("x" * 5000))
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"

    def test_unknown_paths_and_methods(self, shared: LiveServer) -> None:
        missing = shared.http.get(f"{shared.url}/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        wrong = shared.http.get(f"{shared.url}/chat/completions")
        assert wrong.status_code == 405
        assert wrong.json()["error"]["message"]
