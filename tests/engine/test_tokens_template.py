"""Loading a tokenizer and rendering chats."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agentrt.engine.template import ChatTemplate, plain_message
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import InvalidRequest, ModelError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run <a> & 'b'",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "bash", "arguments": '{"command": "ls"}'},
}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "You fix code."},
    {"role": "user", "content": "Look <here> & there – é."},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "a.py\nb.py"},
    {"role": "assistant", "content": "Two files."},
    {"role": "user", "content": [{"type": "text", "text": "Go "}, {"type": "text", "text": "on."}]},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model_dir)


def template(source: str, **settings: Any) -> ChatTemplate:
    return ChatTemplate(source, origin="here.jinja", **settings)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("length", [2, 4, 6])
def test_rendering_equals_that_of_transformers(
    tokenizer: Tokenizer, tiny_model_dir: Path, tools: Any, prompt: bool, length: int
) -> None:
    other = AutoTokenizer.from_pretrained(tiny_model_dir)
    messages = CHAT[:length]
    expected = other.apply_chat_template(
        [plain_message(message) for message in messages],
        tools=tools,
        tokenize=False,
        add_generation_prompt=prompt,
    )
    text = tokenizer.render(messages, tools=tools, add_generation_prompt=prompt)
    assert text == expected
    assert tokenizer.encode(text) == other(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_ids == {other.eos_token_id}


def test_our_template_says_roles_tools_and_calls(tokenizer: Tokenizer) -> None:
    text = tokenizer.render(CHAT, tools=TOOLS)
    assert text.startswith("<|im_start|>system\nYou fix code.\n\nTools")
    assert "Run <a> & 'b'" in text  # not escaped for HTML
    assert (
        '<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call><|im_end|>' in text
    )
    assert "<|im_start|>tool\na.py\nb.py<|im_end|>\n" in text
    assert text.endswith("<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n")


def test_our_template_refuses_an_unknown_role(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="Unknown role: wizard"):
        tokenizer.render([{"role": "wizard", "content": "x"}])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "no role"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": 7}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}],
        ["text"],
    ],
)
def test_malformed_messages_are_invalid_requests(tokenizer: Tokenizer, messages: Any) -> None:
    with pytest.raises(InvalidRequest):
        tokenizer.render(messages)


def test_a_template_can_refuse_and_can_fail() -> None:
    refusing = template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        refusing.render([{"role": "user", "content": "x"}])
    failing = template("{{ messages[0].content + 1 }}")
    with pytest.raises(InvalidRequest, match="refuses the messages"):
        failing.render([{"role": "user", "content": "x"}])


def test_a_template_cannot_reach_outside_its_sandbox() -> None:
    escape = template("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest, match="refuses the messages"):
        escape.render([{"role": "user", "content": "x"}])
    changing = template("{{ messages.append(1) }}")
    with pytest.raises(InvalidRequest, match="refuses the messages"):
        changing.render([{"role": "user", "content": "x"}])


def test_blocks_are_trimmed_and_the_usual_names_are_there() -> None:
    source = (
        "{% for m in messages %}\n"
        "    {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}[{{ m.content }}]{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%d %b %Y') }} {{ {'a': '<é>'} | tojson }} {{ bos_token }}"
    )
    made = template(source, variables={"bos_token": "<s>"}, now=lambda: datetime(2024, 2, 29))
    text = made.render([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}])
    assert text == '[x]29 Feb 2024 {"a": "<é>"} <s>'


def test_a_template_that_does_not_compile_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"here\.jinja.*does not compile"):
        template("{% for %}")


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_a_model_without_template_names_the_remedy(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = copy(tiny_model_dir, tmp_path / "bare")
    (directory / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_directory(directory)
    with pytest.raises(ModelError, match=r"no chat template.*chat_template\.jinja"):
        tokenizer.render(CHAT)


@pytest.mark.parametrize("several", [False, True])
def test_the_template_may_be_in_the_settings(
    tiny_model_dir: Path, tmp_path: Path, several: bool
) -> None:
    directory = copy(tiny_model_dir, tmp_path / "old")
    (directory / "chat_template.jinja").unlink()
    source = "{{ eos_token }}:{{ messages[0].content }}"
    listed = [{"name": "rag", "template": "no"}, {"name": "default", "template": source}]
    settings = {
        "chat_template": listed if several else source,
        "eos_token": {"content": "<|endoftext|>"},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "<|endoftext|>:x"
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.end_of_turn == 0


def test_end_tokens_come_from_the_generation_defaults(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = copy(tiny_model_dir, tmp_path / "eos")
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.eos_ids == {2, 5}
    assert tokenizer.end_of_turn == 2
    (directory / "generation_config.json").unlink()
    assert Tokenizer.from_directory(directory).eos_ids == {2}


def test_a_missing_or_broken_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_arguments_that_are_not_json_stay_text() -> None:
    broken = {"function": {"name": "f", "arguments": '{"a": '}}
    plain = plain_message({"role": "assistant", "tool_calls": [broken]})
    assert plain["tool_calls"][0]["function"]["arguments"] == '{"a": '
