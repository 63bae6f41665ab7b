"""The torch backend by itself: what it checks, what it keeps, and how one bad row stays alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import SeqSlice, StepPlan

PAGE = 4
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(tiny_model_dir)


class Poison:
    """A decoder whose logits of the rows in ``bad`` are not numbers."""

    def __init__(self, model, bad):
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.model, self.bad = model, bad

    def forward(self, tokens, positions, attention, rows):
        logits = self.model.forward(tokens, positions, attention, rows)
        logits[self.bad] = float("nan")
        return logits


def make_backend(model, **options):
    attention = TorchPagedAttention(model.config, 32, PAGE, model.dtype)
    return TorchBackend(model, attention, **options)


def piece(turn_id, start, count, sample=True, first_page=0):
    return SeqSlice(turn_id, start, count, range(first_page, first_page + 8), sample)


def run_one(backend, *pieces):
    return backend.run(StepPlan(tuple(pieces))).samples


class TestOpen:
    @pytest.mark.parametrize("prompt", [[], [-1], [512], [1.5], ["a"], [2**70], [[1]], [True]])
    def test_prompts_that_are_not_tokens_are_refused(self, model, prompt):
        backend = make_backend(model)
        with pytest.raises(InvalidRequest, match="prompt"):
            backend.open("t", prompt, GREEDY)
        assert backend.open_turns == 0

    def test_so_are_forced_and_stop_tokens(self, model):
        backend = make_backend(model)
        with pytest.raises(InvalidRequest, match="forced"):
            backend.open("t", [1], GREEDY, [512])
        with pytest.raises(InvalidRequest, match="stop_token_ids"):
            backend.open("t", [1], SamplingParams(stop_token_ids=(512,)))
        backend.open("t", np.array([1, 511]), GREEDY, (0,))
        assert backend.open_turns == 1
        backend.close("t")
        backend.close("t")
        assert backend.open_turns == 0

    def test_a_turn_without_a_seed_draws_one_and_keeps_it(self, model):
        seeds = iter([5, 6])
        backend = make_backend(model, draw_seed=lambda: next(seeds))
        for turn_id, seed in (("a", None), ("b", 5), ("c", None)):
            backend.open(turn_id, [7, 8, 9], SamplingParams(seed=seed, temperature=3.0))
        outputs = {"a": [], "b": [], "c": []}
        for step in range(6):
            start, count = (0, 3) if step == 0 else (2 + step, 1)
            samples = run_one(
                backend,
                *(piece(t, start, count, first_page=8 * i) for i, t in enumerate(outputs)),
            )
            for turn_id, sample in samples.items():
                outputs[turn_id] += sample.tokens
        assert outputs["a"] == outputs["b"] != outputs["c"]


class TestPlans:
    def test_a_plan_that_does_not_fit_the_tokens_is_a_bug(self, model):
        backend = make_backend(model)
        backend.open("t", [1, 2, 3], GREEDY)
        for wrong in (piece("t", 0, 4), piece("t", 0, 2), piece("t", 0, 3, sample=False)):
            with pytest.raises(InternalError, match="has 3 tokens"):
                run_one(backend, wrong)
        with pytest.raises(InternalError, match="2 times"):
            backend.run(StepPlan((piece("t", 0, 3),), repeat=2))

    def test_a_chunk_that_is_not_sampled_gives_no_sample(self, model):
        backend = make_backend(model)
        backend.open("t", [1, 2, 3], GREEDY)
        assert run_one(backend, piece("t", 0, 2, sample=False)) == {}
        assert set(run_one(backend, piece("t", 2, 1))) == {"t"}

    def test_a_preempted_turn_is_computed_again_from_prompt_and_output(self, model):
        backend = make_backend(model)
        backend.open("t", [1, 2, 3], GREEDY)
        backend.open("u", [1, 2, 3], GREEDY)
        first = [run_one(backend, piece("t", *at))["t"].tokens for at in ((0, 3), (3, 1), (4, 1))]
        for at in ((0, 3), (3, 1)):
            run_one(backend, piece("u", *at, first_page=8))
        again = run_one(backend, piece("u", 0, 5, first_page=16))["u"].tokens
        assert again == first[2]

    def test_long_turns_outgrow_their_buffers(self, model):
        backend = make_backend(model)
        backend.open("t", [1], GREEDY, forced=[2] * 30)
        samples = [run_one(backend, piece("t", i, 1))["t"] for i in range(30)]
        assert [sample.tokens for sample in samples] == [(2,)] * 30
        assert [sample.finish for sample in samples] == [None] * 29 + ["stop"]


class TestBadLogits:
    def test_one_bad_row_fails_one_turn_with_a_reason(self, model, caplog):
        backend = make_backend(Poison(model, 1))
        for turn_id in "abc":
            backend.open(turn_id, [1, 2], GREEDY)
        with caplog.at_level(logging.ERROR):
            samples = run_one(
                backend, *(piece(t, 0, 2, first_page=8 * i) for i, t in enumerate("abc"))
            )
        assert samples["b"].finish == "failed"
        assert "position 2" in samples["b"].error
        assert samples["b"].tokens == ()
        assert samples["a"].tokens == samples["c"].tokens
        assert samples["a"].finish is None
        assert "Turn b failed" in caplog.text

    def test_forced_output_does_not_hide_them(self, model):
        backend = make_backend(Poison(model, 0))
        backend.open("t", [1, 2], GREEDY, forced=[3])
        assert run_one(backend, piece("t", 0, 2))["t"].finish == "failed"


def test_logprobs_are_asked_for_by_turn(model):
    backend = make_backend(model)
    backend.open("a", [1, 2], SamplingParams(logprobs=2), forced=[9])
    backend.open("b", [1, 2], GREEDY)
    samples = run_one(backend, piece("a", 0, 2), piece("b", 0, 2, first_page=8))
    [logprob] = samples["a"].logprobs
    assert logprob.token == 9
    assert logprob.top[0][0] == samples["b"].tokens[0]
    assert logprob.logprob <= logprob.top[0][1] < 0
    assert samples["b"].logprobs == ()


def test_penalties_follow_the_output(model):
    backend = make_backend(model)
    backend.open(
        "t", [1, 2], SamplingParams(temperature=0, presence_penalty=2, frequency_penalty=2)
    )
    state = backend._turns["t"].sampling
    [token] = run_one(backend, piece("t", 0, 2))["t"].tokens
    assert torch.nonzero(state.counts)[:, 0].tolist() == [token]
    assert torch.nonzero(state.seen)[:, 0].tolist() == sorted({1, 2, token})
