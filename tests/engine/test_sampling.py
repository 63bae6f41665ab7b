"""The sampler against a reference that is written token by token in numpy, and its invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.draws import token_weights as weigh
from agentrt.engine.draws import uniform
from agentrt.engine.params import SamplingParams
from agentrt.engine.sampling import TurnSampling, draw_tokens, make_cuts

VOCAB = 37


def token_weights(logits, params):
    """Weights by parameters; with cuts they come out the same whether or not they are sorted."""
    temperature = torch.tensor([[p.temperature] for p in params])
    cuts = make_cuts(params, logits)
    sorting = replace(cuts, most=None, by_mass=True)
    sorted_ = weigh(logits.clone(), temperature, sorting)
    weights = weigh(logits, temperature, cuts)
    assert torch.equal(weights, sorted_)
    return weights


def reference_probabilities(row, params, prompt, output):
    """The distribution of the next token, in float64, from the definitions alone."""
    logits = [float(x) for x in row]
    for token in sorted(set(prompt) | set(output)):
        up = logits[token] > 0
        logits[token] *= 1 / params.repetition_penalty if up else params.repetition_penalty
    for token in range(len(logits)):
        times = output.count(token)
        logits[token] -= params.frequency_penalty * times
        logits[token] -= params.presence_penalty * (times > 0)
    ranked = sorted(range(len(logits)), key=lambda t: -logits[t])
    if params.temperature == 0:
        return np.eye(len(logits))[ranked[0]]
    weights = np.exp((np.array(logits) - max(logits)) / params.temperature)
    if params.top_k:
        weights[ranked[params.top_k :]] = 0
    weights /= weights.sum()
    if params.top_p < 1:
        mass = 0.0
        for place, token in enumerate(ranked):
            if mass >= params.top_p:
                weights[ranked[place:]] = 0
                break
            mass += weights[token]
    weights[weights < params.min_p * weights.max()] = 0
    return weights / weights.sum()


def reference_draw(row, params, prompt, output, number):
    weights = reference_probabilities(row, params, prompt, output)
    for token, above in enumerate(np.cumsum(weights)):
        if above > number:
            return token
    return int(np.flatnonzero(weights)[-1])


def started(params, prompt=(0,), output=(), seed=None, vocab=VOCAB):
    turn = TurnSampling.start(
        params, params.seed if seed is None else seed, torch.tensor(prompt), vocab
    )
    for token in output:
        turn.note(token)
    return turn


def random_params(rng, **fixed):
    chosen = {
        "temperature": float(rng.choice([0.0, 0.3, 1.0, 2.5])),
        "top_k": int(rng.choice([0, 1, 5, 36, 500])),
        "top_p": float(rng.choice([0.05, 0.5, 0.9, 1.0])),
        "min_p": float(rng.choice([0.0, 0.1, 0.6])),
        "repetition_penalty": float(rng.choice([1.0, 1.3, 0.8])),
        "presence_penalty": float(rng.choice([0.0, 0.7, -1.0])),
        "frequency_penalty": float(rng.choice([0.0, 0.4])),
        "seed": int(rng.integers(2**31)),
    }
    return SamplingParams(**(chosen | fixed))


def tokens_of(logits, turns, positions, forced=None):
    draws = draw_tokens(logits, turns, positions, forced or [None] * len(turns))
    return [draw.token for draw in draws]


def test_mixed_batches_equal_the_reference_row_by_row():
    rng = np.random.default_rng(5)
    checked = 0
    for _ in range(60):
        rows = int(rng.integers(1, 9))
        logits = rng.normal(0, 3, (rows, VOCAB)).astype(np.float32)
        params = [random_params(rng) for _ in range(rows)]
        prompts = [rng.integers(VOCAB, size=6).tolist() for _ in range(rows)]
        outputs = [rng.integers(VOCAB, size=int(rng.integers(6))).tolist() for _ in range(rows)]
        positions = [len(p) + len(o) for p, o in zip(prompts, outputs, strict=True)]
        turns = [started(*row) for row in zip(params, prompts, outputs, strict=True)]
        wanted = [
            reference_draw(logits[i], p, prompts[i], outputs[i], uniform(p.seed, positions[i]))
            for i, p in enumerate(params)
        ]
        assert tokens_of(torch.from_numpy(logits), turns, positions) == wanted
        checked += rows
    assert checked > 200


def test_a_row_does_not_depend_on_the_batch_and_logits_stay_as_they_were():
    rng = np.random.default_rng(6)
    logits = torch.from_numpy(rng.normal(0, 2, (8, VOCAB)).astype(np.float32))
    turns = [started(random_params(rng), [1, 2], [3]) for _ in range(8)]
    before = logits.clone()
    together = tokens_of(logits, turns, [3] * 8)
    assert torch.equal(logits, before)
    alone = [tokens_of(logits[i : i + 1], [turns[i]], [3])[0] for i in range(8)]
    assert together == alone


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5, "top_k": 4},
        {"top_p": 0.7, "temperature": 2.0},
        {"min_p": 0.2, "presence_penalty": 1.0},
    ],
)
@pytest.mark.parametrize("vary", ["seed", "position"])
def test_many_draws_have_the_right_distribution(fields, vary):
    rng = np.random.default_rng(8)
    row = rng.normal(0, 1.2, 12).astype(np.float32)
    params = SamplingParams(**fields)
    draws = 20_000
    turns = [
        started(params, [1], [2, 2], seed=number if vary == "seed" else 7, vocab=12)
        for number in range(draws if vary == "seed" else 1)
    ] * (1 if vary == "seed" else draws)
    positions = [3] * draws if vary == "seed" else list(range(draws))
    logits = torch.from_numpy(row).expand(draws, -1)
    counts = np.bincount(tokens_of(logits, turns, positions), minlength=12)
    wanted = reference_probabilities(row, params, [1], [2, 2])
    assert (counts[wanted == 0] == 0).all()
    kept = wanted > 0
    # 11 degrees of freedom at most: the 99.99 % quantile is 37.4; the inputs are fixed.
    assert chi_square(counts[kept], wanted[kept] * draws) < 37.4


def test_the_numbers_of_neighbouring_seeds_and_positions_are_unrelated():
    table = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    assert len(np.unique(table)) == table.size
    assert ((table >= 0) & (table < 1)).all()
    for shifted in (table[1:, :], table[:, 1:], table[1:, 1:], table[1:, :-1]):
        same = table[: shifted.shape[0], : shifted.shape[1]]
        if shifted is not table[1:, :-1]:
            assert abs(np.corrcoef(same.ravel(), shifted.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(table[1:, :-1].ravel(), table[:-1, 1:].ravel())[0, 1]) < 0.02
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


rows_of_logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(
    lambda values: torch.tensor([values])
)


class TestCuts:
    @given(rows_of_logits, st.integers(1, 50))
    def test_top_k_keeps_the_k_best_and_their_equals(self, logits, k):
        weights = token_weights(logits.clone(), [SamplingParams(top_k=k)])[0]
        row = logits[0] - logits.max()  # which may make equals of what differed by a rounding
        floor = row.sort(descending=True).values[min(k, len(row)) - 1]
        best = row >= floor
        # What underflows to weight 0 is left out of both sides.
        alive = row > -80
        assert torch.equal((weights > 0) & alive, best & alive)

    @given(rows_of_logits, st.floats(0.01, 0.999))
    def test_top_p_keeps_the_smallest_best_set_with_that_mass(self, logits, p):
        whole = torch.softmax(logits[0].double(), 0)
        kept = token_weights(logits.clone(), [SamplingParams(top_p=p)])[0] > 0
        assert whole[kept].sum() >= p - 1e-6
        least = whole[kept].min()
        assert (whole[~kept] <= least).all()
        above = whole[whole > least * (1 + 1e-9)]
        assert above.sum() < p + 1e-6

    @given(rows_of_logits, st.floats(0, 1))
    def test_min_p_keeps_what_is_that_likely_beside_the_best(self, logits, p):
        weights = token_weights(logits.clone(), [SamplingParams(min_p=p)])[0]
        assert weights.max() == 1
        kept = weights[weights > 0]
        assert (kept >= np.float32(p)).all()
        whole = torch.exp(logits[0].double() - logits[0].max().double())
        assert (weights[whole > p * (1 + 1e-5) + 1e-30] > 0).all()

    @given(rows_of_logits, st.integers(0, 5), st.floats(0.01, 1), st.floats(0, 1))
    def test_the_best_token_always_stays(self, logits, k, p, m):
        params = SamplingParams(top_k=k, top_p=p, min_p=m, temperature=1e-40)
        weights = token_weights(logits.clone(), [params])[0]
        assert weights[logits[0].argmax()] == 1

    def test_top_p_of_a_large_flat_vocabulary(self):
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(2, 5000, generator=generator) * 0.01
        kept = (
            token_weights(logits.clone(), [SamplingParams(top_p=p) for p in (0.9, 1.0)]) > 0
        ).sum(1)
        assert 4400 < int(kept[0]) < 4600
        assert int(kept[1]) == 5000


class TestPenalties:
    def test_repetition_counts_prompt_and_output_the_others_only_output(self):
        flat = torch.tensor([[2.0, 1.9, 1.8, -5.0]])
        greedy = {"temperature": 0.0}
        repeat = started(SamplingParams(repetition_penalty=2.0, **greedy), [0], [1], 0, 4)
        assert tokens_of(flat, [repeat], [2]) == [2]
        present = started(SamplingParams(presence_penalty=0.15, **greedy), [0], [], 0, 4)
        assert tokens_of(flat, [present], [1]) == [0]
        present.note(0)
        assert tokens_of(flat, [present], [2]) == [1]
        often = started(SamplingParams(frequency_penalty=0.06, **greedy), [3], [0], 0, 4)
        assert tokens_of(flat, [often], [2]) == [0]
        often.note(0)
        assert tokens_of(flat, [often], [3]) == [1]

    def test_huge_logits_and_small_penalties_do_not_overflow(self):
        logits = torch.tensor([[3e38, 1.0, -3e38]])
        turn = started(SamplingParams(repetition_penalty=0.01, seed=1), [0, 2], [], 1, 3)
        assert tokens_of(logits, [turn], [2]) == [0]


class TestBadRows:
    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_row_with_nan_or_inf_has_no_token_and_spares_the_others(self, poison, temperature):
        logits = torch.zeros(3, 8)
        logits[:, 5] = 50.0
        logits[1, 2] = poison
        turn = started(SamplingParams(temperature=temperature, logprobs=1), seed=0, vocab=8)
        draws = draw_tokens(logits, [turn] * 3, [1, 2, 3], [None] * 3)
        assert [draw.token for draw in draws] == [5, None, 5]
        assert draws[1].logprob is None

    def test_a_row_without_any_possible_token_has_none(self):
        turn = started(SamplingParams(), seed=0, vocab=4)
        assert tokens_of(torch.full((1, 4), -torch.inf), [turn], [1]) == [None]

    def test_forced_tokens_come_out_but_not_of_a_bad_row(self):
        logits = torch.zeros(2, 4)
        logits[1, 0] = float("nan")
        turn = started(SamplingParams(), seed=0, vocab=4)
        assert tokens_of(logits, [turn] * 2, [1, 1], [3, 3]) == [3, None]


class TestLogprobs:
    def test_they_are_the_models_own_before_penalties_and_cuts(self):
        rng = np.random.default_rng(2)
        logits = torch.from_numpy(rng.normal(0, 2, (3, VOCAB)).astype(np.float32))
        params = [
            SamplingParams(logprobs=3, top_k=2, temperature=0.2, presence_penalty=2.0),
            SamplingParams(),
            SamplingParams(logprobs=0),
        ]
        turns = [started(p, [1], [2], seed=9) for p in params]
        draws = draw_tokens(logits, turns, [2, 2, 2], [None, None, 11])
        table = np.log(
            np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum(1)[:, None]
        )
        first = draws[0].logprob
        assert first.token == draws[0].token
        assert first.logprob == pytest.approx(table[0, first.token], abs=1e-5)
        assert [token for token, _ in first.top] == np.argsort(-table[0])[:3].tolist()
        assert [value for _, value in first.top] == pytest.approx(
            np.sort(table[0])[::-1][:3], abs=1e-5
        )
        assert draws[1].logprob is None
        assert draws[2].token == 11
        assert draws[2].logprob.top == ()
        assert draws[2].logprob.logprob == pytest.approx(table[2, 11], abs=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 2**63), st.integers(0, 10_000), st.integers(2, 60), st.integers(0, 2**31))
def test_a_draw_is_a_function_of_seed_and_position(seed, position, vocab, noise):
    logits = torch.from_numpy(
        np.random.default_rng(noise).normal(0, 1, (1, vocab)).astype(np.float32)
    )
    turn = started(SamplingParams(), seed=seed, vocab=vocab)
    assert tokens_of(logits, [turn], [position]) == tokens_of(logits, [turn], [position])
    assert 0 <= tokens_of(logits, [turn], [position])[0] < vocab
