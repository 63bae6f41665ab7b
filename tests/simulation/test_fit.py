"""The fit finds the model that made the points, says how well it fits, and refuses nonsense."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import SeqSlice, StepPlan
from agentrt.simulation.cost import CostModel
from agentrt.simulation.fit import Observation, fit, read_points

TRUE = CostModel(5e-3, 3e-5, 4e-8, prefill_pair_seconds=1e-9, sequence_seconds=2e-5)
LENGTHS = (128, 512, 1024, 2048, 4096, 8192)


def prefill(tokens: int, cost: CostModel = TRUE) -> Observation:
    pairs = tokens * (tokens + 1) // 2
    plan = StepPlan((SeqSlice("t", 0, tokens, [], True),))
    return Observation(tokens, pairs, 0, 0, cost.step(plan).first)


def decode(sequences: int, each: int, cost: CostModel = TRUE) -> Observation:
    plan = StepPlan(tuple(SeqSlice(str(n), each - 1, 1, [], True) for n in range(sequences)))
    return Observation(0, 0, sequences, sequences * each, cost.step(plan).first)


def points(cost: CostModel = TRUE) -> list[Observation]:
    decodes = [decode(n, each, cost) for n in (1, 8, 32, 64) for each in (512, 4096)]
    return [prefill(tokens, cost) for tokens in LENGTHS] + decodes


def test_exact_points_give_the_model_back():
    reloads = [(tokens, 1e-3 + 2e-6 * tokens) for tokens in LENGTHS]
    found = fit(points(), reloads, max_seqs=7)
    for name in (
        "step_seconds",
        "prefill_token_seconds",
        "prefill_pair_seconds",
        "context_token_seconds",
        "sequence_seconds",
    ):
        assert getattr(found.cost, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert found.cost.reload(1000) == pytest.approx(3e-3)
    assert found.cost.max_seqs == 7
    assert found.r2 == pytest.approx({"prefill": 1.0, "decode": 1.0, "reload": 1.0})
    assert found.points == {"prefill": 6, "decode": 8, "reload": 6}


@settings(max_examples=40, deadline=None)
@given(
    step=st.floats(1e-3, 2e-2),
    token=st.floats(1e-6, 1e-3),
    pair=st.floats(0, 1e-8),
    sequence=st.floats(0, 1e-3),
    context=st.floats(0, 1e-6),
    seed=st.integers(0, 100),
)
def test_noisy_points_are_foretold_within_their_noise(step, token, pair, sequence, context, seed):
    true = CostModel(step, token, context, prefill_pair_seconds=pair, sequence_seconds=sequence)
    noise = random.Random(seed)
    noisy = [replace(row, seconds=row.seconds * noise.uniform(0.98, 1.02)) for row in points(true)]
    found = fit(noisy).cost
    for row in points(true):
        told = (
            found.step_seconds
            + found.prefill_token_seconds * row.prefilled
            + found.prefill_pair_seconds * row.pairs
            + found.sequence_seconds * row.sequences
            + found.context_token_seconds * row.context
        )
        assert told == pytest.approx(row.seconds, rel=0.05)
    assert min(found.step_seconds, found.prefill_pair_seconds, found.sequence_seconds) >= 0


def test_steps_of_a_run_take_as_long_together_as_measured():
    # One in four steps was disturbed: the sum must hold, whatever the single steps say.
    rows = [
        replace(row, seconds=row.seconds * (5 if at % 4 == 0 else 1))
        for at, row in enumerate(points())
    ]
    found = fit(rows, relative=False).cost
    told = sum(
        found.step_seconds
        + found.prefill_token_seconds * row.prefilled
        + found.prefill_pair_seconds * row.pairs
        + found.sequence_seconds * row.sequences
        + found.context_token_seconds * row.context
        for row in rows
    )
    assert told == pytest.approx(sum(row.seconds for row in rows), rel=1e-6)


def test_a_curve_that_the_model_cannot_bend_to_has_a_low_r2():
    bent = [replace(row, seconds=1.0 / (1 + at)) for at, row in enumerate(points())]
    assert fit(bent).r2["prefill"] < 0.9


def test_a_file_of_points_is_read(tmp_path):
    path = tmp_path / "points.json"
    rows = {
        "prefill": [[100, 0.5], [100, 50, 0.6]],
        "decode": [[4, 4000, 0.01]],
        "steps": [[10, 55, 2, 300, 0.02]],
        "reload": [[1000, 0.001]],
        "source": "mine",
    }
    path.write_text(json.dumps(rows))
    steps, reloads, rest = read_points(path)
    assert steps == [
        Observation(10, 55, 2, 300, 0.02),
        Observation(100, 5050, 0, 0, 0.5),
        Observation(100, 10_050, 0, 0, 0.6),
        Observation(0, 0, 4, 4000, 0.01),
    ]
    assert reloads == [(1000, 0.001)]
    assert rest["source"] == "mine"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"prefill": [[1]]}', '{"decode": [[1, 2, "x"]]}', '{"steps": 3}']
)
def test_a_wrong_file_is_explained(tmp_path, content):
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_points(path)
    assert "points.json" in str(caught.value)


def test_too_few_points_or_no_time_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        fit(points()[:3])
    with pytest.raises(ConfigError, match="above 0"):
        fit([*points(), Observation(1, 1, 0, 0, 0.0)])
