"""Cost models from published figures, against published throughput."""

from __future__ import annotations

import pytest

from agentrt.errors import ConfigError
from agentrt.simulation.cost import load_cost
from agentrt.simulation.hardware import GPUS, MODELS, PUBLISHED, gpu_cost, pool_tokens


@pytest.mark.parametrize(("prompt", "output", "users", "rate"), PUBLISHED)
def test_published_throughput_of_an_h100_comes_out(prompt, output, users, rate):
    cost = gpu_cost("h100", "qwen3-8b")
    # A closed loop of users: each output token takes its share of a decode step, and each prompt
    # is prefilled once for its outputs.
    step = cost.step_seconds + users * cost.sequence_seconds
    step += users * (prompt + output / 2) * cost.context_token_seconds
    prefill = cost.prefill_seconds(prompt) / output
    assert 1 / (step / users + prefill) == pytest.approx(rate, rel=0.10)


def test_every_gpu_and_model_gives_a_model_with_its_source():
    for gpu in GPUS:
        for model in MODELS:
            cost = load_cost(f"{gpu}/{model}")
            assert cost == gpu_cost(gpu, model)
            assert gpu in cost.source
            assert cost.prefill_seconds(32_768) > cost.reload(32_768)


def test_a_larger_gpu_holds_more_and_decodes_faster():
    assert pool_tokens("h200", "qwen3-8b") > pool_tokens("h100", "qwen3-8b") > 300_000
    assert gpu_cost("h200", "qwen3-8b").step_seconds < gpu_cost("h100", "qwen3-8b").step_seconds


def test_an_unknown_gpu_or_model_lists_what_exists():
    with pytest.raises(ConfigError, match="h200"):
        gpu_cost("h300", "qwen3-8b")
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b"):
        load_cost("h200/llama-9")
