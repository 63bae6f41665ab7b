"""Tokens of a growing prompt: what is handed out early is what the whole prompt begins with."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.growing import LONGEST, GrowingPrompt
from agentrt.engine.tokens import PromptBuilder, Tokenizer
from agentrt.errors import InvalidRequest

START = [{"role": "system", "content": "You fix code."}, {"role": "user", "content": "Fix it."}]
SAID = {"role": "assistant", "content": "I look."}

LINES = st.sampled_from(
    [
        "def f(x):",
        "    return x + 1",
        "",
        "ok 1 - works",
        "  ",
        "é naïve 漢字 🙂",
        "\t\tx\ty",
        "12 345",
    ]
)
OUTPUTS = st.lists(LINES | st.text(max_size=40), max_size=60).map("\n".join)
CUTS = st.lists(st.integers(0, 3000), max_size=12)
property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model_dir)


def pieces(text, cuts):
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[low:high] for low, high in pairwise(places)]


def check(builder, messages, output, cuts):
    """Stream ``output`` as the content of one more message; return how many tokens were certain."""
    grown = builder.begin([*messages, {"role": "tool", "content": ""}])
    head = len(grown.tokens)
    told = grown.tokens
    for piece in pieces(output, cuts):
        told += grown.write(piece)
    assert told == grown.tokens
    whole = builder.build([*messages, {"role": "tool", "content": output}])
    assert told == whole[: len(told)]
    return len(told) - head, len(whole) - head


class TestPrefix:
    @property_test
    @given(OUTPUTS, CUTS)
    def test_of_a_first_prompt(self, tokenizer, output, cuts):
        check(PromptBuilder(tokenizer), START, output, cuts)

    @property_test
    @given(OUTPUTS, CUTS, st.booleans())
    def test_of_a_continued_conversation(self, tokenizer, output, cuts, ended):
        builder = PromptBuilder(tokenizer)
        builder.build(START)
        # One token a character: what was answered is kept as it was, whatever encoding would give.
        answer = [token for character in "I look." for token in tokenizer.encode(character)]
        builder.note_output([*answer, 2] if ended else answer, SAID)
        grown = builder.begin([*START, SAID, {"role": "tool", "content": ""}])
        assert len(grown.tokens) > len(answer)
        check(builder, [*START, SAID], output, cuts)

    def test_nearly_all_of_a_long_output_is_certain_before_its_end(self, tokenizer):
        builder = PromptBuilder(tokenizer)
        output = "\n".join(f"tests/test_{i}.py::test_{i} PASSED in {i}.5 s" for i in range(200))
        certain, whole = check(builder, START, output, range(0, len(output), 700))
        assert certain > 0.95 * whole

    @pytest.mark.parametrize("strips", [False, True])
    def test_a_template_that_strips_contents(self, tiny_model_dir, tmp_path, strips):
        directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
        shown = "message.content | trim" if strips else "message.content"
        (directory / "chat_template.jinja").write_text(
            "{% for message in messages %}[{{ message.role }}] {{ " + shown + " }}\n{% endfor %}"
        )
        builder = PromptBuilder(Tokenizer.from_directory(directory))
        output = "\n  \n  first\n" + "\n".join(f"line {i} is here" for i in range(100)) + "\n \n"
        certain, _ = check(builder, START, output, range(0, len(output), 90))
        assert certain > 300

    def test_a_tokenizer_without_words_of_its_own(self):
        """Cuts that do not hold in the end cost work, nothing else; most still do."""
        model = tokenizers.models.BPE(
            {"a": 0, "\n": 1, "b": 2, " ": 3, "\nb": 4, "b\nb": 5, " b": 6},
            [("\n", "b"), ("b", "\nb"), (" ", "b")],
        )
        raw = tokenizers.Tokenizer(model)
        grown = GrowingPrompt(lambda text: list(raw.encode(text).ids), [9], "")
        text = ("a b" * 40 + "\nb") * 6
        told = [
            token for at in range(0, len(text), 50) for token in grown.write(text[at : at + 50])
        ]
        assert told == raw.encode(text).ids[: len(told)]

    def test_text_without_a_cut_gives_nothing_and_says_so(self, tokenizer):
        grown = GrowingPrompt(tokenizer.encode, [], "")
        for _ in range(LONGEST // 1000 + 1):
            assert grown.write("=" * 1000) == []
        assert grown.stuck


class TestBegin:
    def test_no_messages_are_refused(self, tokenizer):
        with pytest.raises(InvalidRequest, match="no messages"):
            PromptBuilder(tokenizer).begin([])

    def test_a_template_that_changes_contents_gives_none(self, tiny_model_dir, tmp_path):
        directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
        (directory / "chat_template.jinja").write_text("{{ messages[-1].content | lower }}")
        assert PromptBuilder(Tokenizer.from_directory(directory)).begin(START) is None

    def test_beginning_changes_nothing_of_what_follows(self, tokenizer):
        plain, streamed = PromptBuilder(tokenizer), PromptBuilder(tokenizer)
        for builder in (plain, streamed):
            builder.build(START)
            builder.note_output([*tokenizer.encode("I look."), 2], SAID)
        longer = [*START, SAID, {"role": "tool", "content": json.dumps({"exit": 0})}]
        streamed.begin(longer)
        assert streamed.build(longer) == plain.build(longer)
