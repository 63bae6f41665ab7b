"""Append-stable prompts: a continued conversation keeps every token that it already has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.tokens import PromptBuilder, Tokenizer
from agentrt.errors import InvalidRequest

TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]
START = [{"role": "system", "content": "You fix code."}, {"role": "user", "content": "Fix it."}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model_dir)


def with_template(source: str, tiny_model_dir: Path, tmp_path: Path) -> Tokenizer:
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (directory / "chat_template.jinja").write_text(source)
    return Tokenizer.from_directory(directory)


def assistant(text: str, call: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if call is not None:
        function = {"name": "bash", "arguments": '{"command": "ls"}'}
        message["tool_calls"] = [{"id": call, "type": "function", "function": function}]
    return message


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return tokens of ``text`` that encoding it would not give: one character at a time."""
    return [token for character in text for token in tokenizer.encode(character)]


def test_the_first_prompt_is_the_rendering(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    assert builder.build(START, TOOLS) == tokenizer.encode(tokenizer.render(START, tools=TOOLS))


def test_a_continued_conversation_keeps_prompt_and_output(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    prompt = builder.build(START)
    output = [*spelled(tokenizer, "I look."), tokenizer.end_of_turn or 0]
    builder.note_output(output, assistant("I look."))
    longer = [*START, assistant("I look."), {"role": "user", "content": "Go on."}]
    second = builder.build(longer)
    assert second[: len(prompt) + len(output)] == prompt + output
    rest = tokenizer.encode("\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n")
    assert second[len(prompt) + len(output) :] == rest
    assert second != tokenizer.encode(tokenizer.render(longer))  # the tokens kept are the point


def test_a_turn_without_end_token_gets_it(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    prompt = builder.build(START)
    output = tokenizer.encode("I lo")  # cut by its length
    builder.note_output(output, assistant("I lo"))
    second = builder.build([*START, assistant("I lo"), {"role": "user", "content": "Go on."}])
    rest = "<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
    assert second == prompt + output + tokenizer.encode(rest)


def test_tool_calls_and_results_extend_too(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    prompt = builder.build(START, TOOLS)
    text = 'I look.\n<tool_call>{"name": "bash", "arguments": {"command":"ls"}}</tool_call>'
    output = [*tokenizer.encode(text), 2]
    said = assistant("I look.", call="c1")
    builder.note_output(output, said)
    result = {"role": "tool", "tool_call_id": "c1", "content": "a.py"}
    second = builder.build([*START, said, result], TOOLS)
    rest = tokenizer.encode("\n<|im_start|>tool\na.py<|im_end|>\n<|im_start|>assistant\n")
    assert second == prompt + output + rest


def test_what_clients_change_freely_does_not_matter(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    builder.build(START)
    builder.note_output(
        [*tokenizer.encode("  Yes. \n"), 2], {"role": "assistant", "content": "  Yes. \n"}
    )
    echoed = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": []}
    parts = [{"type": "text", "text": "Fix it."}]
    again = [START[0], {"role": "user", "content": parts}, echoed, {"role": "user", "content": "?"}]
    assert "  Yes. \n" in tokenizer.decode(builder.build(again))


@pytest.mark.parametrize("edit", ["user", "assistant", "tools", "shorter"])
def test_an_edited_history_is_rendered_anew(tokenizer: Tokenizer, edit: str) -> None:
    builder = PromptBuilder(tokenizer)
    builder.build(START)
    builder.note_output(spelled(tokenizer, "Done."), assistant("Done."))
    messages = [*START, assistant("Done."), {"role": "user", "content": "More."}]
    tools = None
    if edit == "user":
        messages[1] = {"role": "user", "content": "Fix that."}
    elif edit == "assistant":
        messages[2] = assistant("Not done.")
    elif edit == "tools":
        tools = TOOLS
    else:
        messages = messages[:1] + messages[3:]
    fresh = tokenizer.encode(tokenizer.render(messages, tools=tools))
    assert builder.build(messages, tools) == fresh


def test_the_same_messages_give_the_same_prompt_again(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    builder.build(START)
    builder.note_output(spelled(tokenizer, "Done."), assistant("Done."))
    longer = [*START, assistant("Done."), {"role": "user", "content": "More."}]
    second = builder.build(longer)
    assert builder.build(longer) == second
    builder.note_output([2], assistant(""))  # a retry answers the same prompt
    third = builder.build([*longer, assistant(""), {"role": "user", "content": "?"}])
    assert third[: len(second) + 1] == [*second, 2]


def test_a_failed_turn_does_not_lose_the_prefix(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    prompt = builder.build(START)
    output = spelled(tokenizer, "Done.")
    builder.note_output(output, assistant("Done."))
    longer = [*START, assistant("Done."), {"role": "user", "content": "More."}]
    builder.build(longer)  # its turn fails: no output is noted
    third = builder.build([*longer, {"role": "user", "content": "Still there?"}])
    assert third[: len(prompt) + len(output)] == prompt + output


def test_changing_a_returned_prompt_changes_nothing(tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(tokenizer)
    builder.build(START).clear()
    assert builder.build(START) == tokenizer.encode(tokenizer.render(START))


def test_output_without_a_prompt_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        PromptBuilder(tokenizer).note_output([1], assistant("x"))


def test_a_template_that_hides_answers_falls_back(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}|{% endfor %}"
    tokenizer = with_template(source, tiny_model_dir, tmp_path)
    builder = PromptBuilder(tokenizer)
    builder.build(START)
    builder.note_output([5, 6], assistant("x"))
    longer = [*START, assistant("x"), {"role": "user", "content": "y"}]
    assert builder.build(longer) == tokenizer.encode("You fix code.|Fix it.|y|")


def test_a_template_that_needs_the_call_falls_back(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}"
        "{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('a result without a call') }}{% endif %}{{ m.content }}|{% endfor %}"
    )
    tokenizer = with_template(source, tiny_model_dir, tmp_path)
    builder = PromptBuilder(tokenizer)
    builder.build(START)
    builder.note_output([5, 6], assistant("x", call="c"))
    result = {"role": "tool", "tool_call_id": "c", "content": "y"}
    longer = [*START, assistant("x", call="c"), result]
    assert builder.build(longer) == tokenizer.encode("You fix code.|Fix it.|x|y|")
    builder.note_output([5], assistant("z"))
    with pytest.raises(InvalidRequest, match="a result without a call"):
        builder.build([*longer, assistant("z"), result])


contents = st.text("ab c\né<|>🦜", max_size=8)
turns = st.lists(
    st.tuples(
        st.lists(st.integers(3, 511), max_size=6),  # any output, even broken UTF-8
        st.sampled_from(["end", "cut"]),
        st.sampled_from(["user", "tool"]),
        contents,
    ),
    min_size=1,
    max_size=6,
)


@given(turns=turns, tools=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_prompt_extends_the_one_before(
    tokenizer: Tokenizer, turns: list[tuple[list[int], str, str, str]], tools: bool
) -> None:
    offered = TOOLS if tools else None
    builder = PromptBuilder(tokenizer)
    messages: list[dict[str, Any]] = list(START)
    so_far = builder.build(messages, offered)
    for output, end, role, content in turns:
        tokens = [*output, 2] if end == "end" else output
        said = assistant(tokenizer.decode(tokens))
        builder.note_output(tokens, said)
        messages = [*messages, said, {"role": role, "content": content}]
        prompt = builder.build(messages, offered)
        known = so_far + tokens
        assert prompt[: len(known)] == known
        closing = "" if end == "end" else "<|im_end|>"
        added = f"{closing}\n<|im_start|>{role}\n{content}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt[len(known) :] == tokenizer.encode(added)
        so_far = prompt
