"""What guesses save on recorded sessions, and what grammars cost: the measures themselves."""

from __future__ import annotations

import pytest

from agentrt.bench.drafting import measure_drafting
from agentrt.bench.masks import measure_masks
from agentrt.bench.workload import Program, Turn, Workload
from agentrt.engine.model.make import make_model
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import WorkloadError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_model(path, "qwen3", "tiny", 0, dtype="float32")
    return path


def session(*pairs):
    turns = tuple(
        Turn(
            context="main",
            prompt_tokens=1,
            reused_tokens=0,
            output_tokens=1,
            messages=({"role": "user", "content": said},),
            output=answer,
        )
        for said, answer in pairs
    )
    return Program("s", turns)


def test_an_answer_that_was_read_takes_few_steps_and_a_new_one_takes_all(directory):
    tokenizer = Tokenizer.from_directory(directory)
    code = "def total(rows):\n    return sum(row.price * row.count for row in rows)\n"
    copied = Workload("w", "w", (session((f"Repeat this:\n{code}", code)),))
    row, everything = measure_drafting(copied, tokenizer)
    assert row.tokens == len(tokenizer.encode(code)) + 1 == everything.tokens
    assert row.fewer > 3
    assert 0.5 < row.acceptance <= 1
    assert everything.to_json()["fewer"] == row.fewer

    fresh = Workload("w", "w", (session(("Say it.", "qzj wvx kpy bgh")),))
    row, _ = measure_drafting(fresh, tokenizer)
    assert row.steps + row.accepted == row.tokens
    assert row.fewer < 1.5


def test_sessions_without_texts_are_refused(directory):
    numbers = Program("n", (Turn("main", 5, 0, 5),))
    with pytest.raises(WorkloadError, match="no texts"):
        measure_drafting(Workload("w", "w", (numbers,)), Tokenizer.from_directory(directory))


def test_masks_are_measured(directory):
    cost = measure_masks(directory, turns=2, steps=5)
    assert (cost.turns, cost.steps) == (2, 4)
    assert cost.mask_us > 0
    assert cost.waiting >= 0
    assert cost.to_json().keys() >= {"plain_step", "grammar_step", "mask_us", "waiting"}
