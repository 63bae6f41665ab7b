"""Unmodified clients against the real engine on a tiny seeded model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from agentrt.engine.model.make import make_model
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.serving.settings import ServeSettings
from tests.serving.conftest import LiveServer, running

STREAMS = 64
PAGE = 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model directory with two small layers."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory, size="tiny", dtype="float32")
    return directory


@pytest.fixture(scope="module")
def real(tiny: Path) -> Iterator[LiveServer]:
    """Return a server over a real runtime."""
    config = RuntimeConfig(
        model=str(tiny), pool_tokens=32_768, page_size=PAGE, threads=1, sandbox=None
    )
    with running(lambda: Runtime.open(config), ServeSettings(drain=0.0)) as live:
        yield live


@pytest.fixture
def client(real: LiveServer) -> Iterator[openai.OpenAI]:
    """Return OpenAI's client as anybody would make it."""
    with openai.OpenAI(base_url=real.url, api_key="none", max_retries=0, timeout=30) as made:
        yield made


def ask(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    asked = {"model": "tiny", "messages": messages, "max_tokens": 12, "temperature": 0}
    return asked | {"extra_body": {"ignore_eos": True}} | fields


class TestOpenAI:
    def test_plain(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(**ask("hello"))
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 12
        again = client.chat.completions.create(**ask("hello"))
        assert again.choices[0].message.content == answer.choices[0].message.content

    def test_streamed_is_the_same_text(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(**ask("same")).choices[0].message.content
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(**ask("same", stream=True, stream_options=options))
        )
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == whole
        assert chunks[-1].usage.completion_tokens == 12
        assert chunks[0].choices[0].delta.role == "assistant"

    def test_a_seed_repeats_itself(self, client: openai.OpenAI) -> None:
        asked = ask("dice", temperature=1.0, seed=7)
        one, two = (client.chat.completions.create(**asked) for _ in range(2))
        assert one.choices[0].message.content == two.choices[0].message.content

    def test_a_conversation_reuses_all_it_has(self, client: openai.OpenAI) -> None:
        asked = ask("Look at the repository and tell me what is wrong with it. " * 4)
        first = client.chat.completions.create(**asked)
        answer = first.choices[0].message
        asked["messages"] += [answer.model_dump(), {"role": "user", "content": "go on"}]
        second = client.chat.completions.create(**asked)
        # The last output token was never an input, so its key is not in the cache.
        known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
        assert second.usage.prompt_tokens_details.cached_tokens == known // PAGE * PAGE

    def test_log_probabilities(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(**ask("p", logprobs=True, top_logprobs=3))
        content = answer.choices[0].logprobs.content
        assert len(content) == 12
        for entry in content:
            assert len(entry.top_logprobs) == 3
            assert entry.logprob == entry.top_logprobs[0].logprob <= 0  # greedy
            assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
        streamed = client.chat.completions.create(
            **ask("p", logprobs=True, top_logprobs=3, stream=True)
        )
        tokens = [
            entry.token
            for chunk in streamed
            for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
        ]
        assert tokens == [entry.token for entry in content]

    def test_completion_with_log_probabilities(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(
            model="tiny", prompt="def main", max_tokens=5, temperature=0, logprobs=2
        )
        scores = answer.choices[0].logprobs
        assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset)
        assert all(1 <= len(top) <= 2 for top in scores.top_logprobs)

    @pytest.mark.parametrize("stream", [False, True])
    def test_demanded_calls_and_the_next_turn(self, client: openai.OpenAI, stream: bool) -> None:
        level = {"type": "string", "enum": ["low", "high"]}
        parameters = {
            "type": "object",
            "properties": {"level": level},
            "required": ["level"],
            "additionalProperties": False,
        }
        tool = {"type": "function", "function": {"name": "alarm", "parameters": parameters}}
        asked = ask(f"Raise it. {stream}", max_tokens=400, tools=[tool], tool_choice="required")
        asked["parallel_tool_calls"] = False
        if stream:
            with client.chat.completions.stream(**asked) as events:
                answer = events.get_final_completion()
        else:
            answer = client.chat.completions.create(**asked)
        assert answer.choices[0].finish_reason == "tool_calls"
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "alarm"
        assert json.loads(call.function.arguments)["level"] in ("low", "high")

        said = answer.choices[0].message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": call.id, "content": "raised"}
        messages = [*asked["messages"], said, result]
        more = client.chat.completions.create(**asked | {"messages": messages})
        # The call was generated as these very tokens: what was computed for it is used again.
        used = answer.usage if not stream else None
        cached = more.usage.prompt_tokens_details.cached_tokens
        assert cached >= (used.total_tokens - PAGE if used else PAGE)

    def test_a_schema(self, client: openai.OpenAI) -> None:
        schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
        form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema}}
        answer = client.chat.completions.create(
            **ask("yes or no", max_tokens=90, temperature=1, seed=4, response_format=form)
        )
        value = json.loads(answer.choices[0].message.content)
        assert len(value) == 2
        assert all(isinstance(each, bool) for each in value)

    def test_errors_are_the_clients_own(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            client.chat.completions.create(**ask("x", tool_choice="required"))
        with pytest.raises(openai.NotFoundError, match="'tiny'"):
            client.chat.completions.create(**ask("x", model="gpt-9"))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ask("x", max_tokens=10_000_000))
        assert caught.value.code == "context_length_exceeded"

    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["tiny"]

    def test_tools_reach_the_prompt(self, client: openai.OpenAI) -> None:
        function = {"name": "bash", "description": "Run.", "parameters": {"type": "object"}}
        plain = client.chat.completions.create(**ask("t"))
        tools = client.chat.completions.create(
            **ask("t", tools=[{"type": "function", "function": function}])
        )
        assert tools.usage.prompt_tokens > plain.usage.prompt_tokens

    def test_leaving_a_stream_frees_its_pages(
        self, client: openai.OpenAI, real: LiveServer
    ) -> None:
        before = real.metric("agentrt_disconnects_total")
        with client.chat.completions.create(**ask("long", stream=True, max_tokens=800)) as stream:
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        real.wait_for("agentrt_disconnects_total", before + 1)
        real.wait_for("agentrt_kv_pages", 0, state="leased")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestCurl:
    def curl(self, real: LiveServer, **fields: Any) -> str:
        asked = ask("hello", **fields)
        asked |= asked.pop("extra_body")
        url = f"{real.url}/chat/completions"
        command = ["curl", "-sN", "--max-time", "30", url, "-d", json.dumps(asked)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def test_plain(self, real: LiveServer) -> None:
        assert json.loads(self.curl(real))["usage"]["completion_tokens"] == 12

    def test_streamed(self, real: LiveServer) -> None:
        lines = self.curl(real, stream=True).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert json.loads(lines[-3].removeprefix("data: "))["choices"][0]["delta"] == {}


def test_many_streams_at_once_have_the_right_number_of_tokens(real: LiveServer) -> None:
    """64 streams, each with a length of its own, over one server."""
    counted: dict[int, tuple[int, str | None]] = {}

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        options = {"include_usage": True}
        asked = ask(f"stream {number}", max_tokens=4 + number % 16)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options=options)
        finish, tokens = None, 0
        async for chunk in stream:
            if chunk.choices:
                finish = chunk.choices[0].finish_reason or finish
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
        counted[number] = (tokens, finish)

    async def all_of_them() -> None:
        with anyio.fail_after(60):
            async with (
                openai.AsyncOpenAI(
                    base_url=real.url, api_key="none", max_retries=0, timeout=60
                ) as client,
                anyio.create_task_group() as tasks,
            ):
                for number in range(STREAMS):
                    tasks.start_soon(one, client, number)

    anyio.run(all_of_them)
    assert counted == {number: (4 + number % 16, "length") for number in range(STREAMS)}
    real.wait_for("agentrt_kv_pages", 0, state="leased")
    assert real.metric("agentrt_requests_running") == 0
