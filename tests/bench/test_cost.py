"""The cost model: closed forms against sums, and cost files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import SeqSlice, StepPlan
from agentrt.simulation.cost import COST_MODELS, CostModel, StepCost, load_cost


def piece(start: int, count: int, sample: bool = True) -> SeqSlice:
    return SeqSlice("t", start, count, [], sample)


def test_reference_8b_costs_what_its_definition_says():
    cost = COST_MODELS["reference-8b"]
    plan = StepPlan((piece(999, 1), piece(1999, 1), piece(0, 500, sample=False), piece(10, 46)))
    step = cost.step(plan)
    assert step.first == pytest.approx(6e-3 + 0.09e-3 * 546 + 0.04e-6 * 3000)
    assert step.growth == pytest.approx(0.04e-6 * 2)
    assert (cost.token_budget, cost.max_seqs, cost.reserve_output) == (2048, 64, True)
    assert cost.prefill_seconds(1000) == pytest.approx(0.09)


def test_a_chunk_of_one_unsampled_token_is_prefill():
    cost = CostModel(1.0, 10.0, 100.0)
    assert cost.step(StepPlan((piece(5, 1, sample=False),))).first == 11.0
    assert cost.step(StepPlan((piece(5, 1),))).first == 601.0


dyadic = st.integers(0, 1000).map(lambda n: n / 256)


@given(
    first=st.integers(1, 1000).map(lambda n: n / 256),
    growth=dyadic,
    limit=st.integers(1, 300),
    seconds=st.integers(0, 100_000).map(lambda n: n / 256),
)
def test_repetitions_are_those_that_start_before_the_time(first, growth, limit, seconds):
    cost = StepCost(first, growth)
    starts = [0.0]
    for repetition in range(limit):
        starts.append(starts[-1] + first + growth * repetition)
    assert cost.total(limit) == starts[limit]
    expected = max(1, sum(1 for start in starts[:limit] if start < seconds))
    assert cost.repetitions(seconds, limit) == expected


def test_repetitions_without_a_next_event():
    assert StepCost(0.1, 0.0).repetitions(float("inf"), 1000) == 1000


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_cost_file_is_read(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    fields = {"step_seconds": 0.01, "prefill_token_seconds": 1e-4, "context_token_seconds": 0}
    if suffix == ".json":
        path.write_text(json.dumps(fields | {"max_seqs": 8, "reserve_output": False}))
    else:
        lines = [f"{name} = {value}" for name, value in fields.items()]
        path.write_text("\n".join([*lines, "max_seqs = 8", "reserve_output = false"]))
    cost = load_cost(str(path))
    assert cost == CostModel(0.01, 1e-4, 0, max_seqs=8, reserve_output=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", "expected one object"),
        ('{"step_seconds": 1}', "missing"),
        ('{"speed": 1}', "unknown"),
        ('{"step_seconds": 0, "prefill_token_seconds": 1, "context_token_seconds": 1}', "above 0"),
        ('{"step_seconds": 1, "prefill_token_seconds": -1, "context_token_seconds": 1}', "or more"),
        (
            '{"step_seconds": "1", "prefill_token_seconds": 1, "context_token_seconds": 1}',
            "seconds",
        ),
        (
            '{"step_seconds": 1, "prefill_token_seconds": 1, "context_token_seconds": 1,'
            ' "max_seqs": 1.5}',
            "whole number",
        ),
        (
            '{"step_seconds": 1, "prefill_token_seconds": 1, "context_token_seconds": 1,'
            ' "reserve_output": 1}',
            "true or false",
        ),
    ],
)
def test_a_wrong_cost_file_is_explained(tmp_path, content, said):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_cost(str(path))
    assert "mine.json" in str(caught.value)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(ConfigError, match="reference-8b"):
        load_cost("reference-70b")
