"""The completions endpoint: prompts as text or tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.serving.conftest import LiveServer, events


def body(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 6, "ignore_eos": True} | fields


def post(live: LiveServer, prompt: Any, **fields: Any) -> httpx.Response:
    return live.http.post(f"{live.url}/completions", json=body(prompt, **fields))


def test_text_and_tokens_are_the_same_prompt(shared: LiveServer) -> None:
    answer = post(shared, "once upon").json()
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    assert len(choice["text"]) == answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == len("once upon")
    tokens = shared.runtime.tokenizer.encode("once upon")
    for same in (tokens, [tokens], ["once upon"]):
        assert post(shared, same).json()["choices"] == answer["choices"]


def test_streamed(shared: LiveServer) -> None:
    whole = post(shared, "stream").json()
    asked = body("stream", stream=True, stream_options={"include_usage": True})
    with shared.http.stream("POST", f"{shared.url}/completions", json=asked) as response:
        *got, done = events(response)
    assert done == "[DONE]"
    *texts, end, usage = [json.loads(event) for event in got]
    assert "".join(text["choices"][0]["text"] for text in texts) == whole["choices"][0]["text"]
    assert end["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
    }
    assert usage["usage"] == whole["usage"] | {
        "prompt_tokens_details": usage["usage"]["prompt_tokens_details"]
    }


@pytest.mark.parametrize("prompt", [None, "", [], [[]], 3, ["a", "b"], [1, "a"], [True]])
def test_wrong_prompts(shared: LiveServer, prompt: Any) -> None:
    response = post(shared, prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_a_token_outside_the_vocabulary_is_refused(shared: LiveServer) -> None:
    response = post(shared, [5000])
    assert response.status_code == 400
    assert "vocabulary" in response.json()["error"]["message"]


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 2)])
def test_what_is_not_supported(shared: LiveServer, field: str, value: Any) -> None:
    assert post(shared, "x", **{field: value}).json()["error"]["param"] == field


def test_without_a_name_it_is_a_program_of_one_turn(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    post(live, "x")
    post(live, "x")
    assert live.runtime.ended == ["default/unnamed-1", "default/unnamed-2"]
    first, second = (post(live, text, program_id="p").headers for text in ("x", "other"))
    assert first["x-agentrt-context"] == second["x-agentrt-context"] == "main"
    assert len(live.runtime.ended) == 2
