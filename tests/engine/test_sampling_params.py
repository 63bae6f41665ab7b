from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agentrt.engine.params import SamplingParams
from agentrt.errors import InvalidRequest

GOOD = [
    {},
    {"temperature": 0},
    {"temperature": 5.0, "top_k": 1, "top_p": 1, "min_p": 1.0},
    {"seed": -(2**63)},
    {"seed": 2**64 - 1},
    {"stop": ("a", "\n\n"), "stop_token_ids": (0, 7), "ignore_eos": True, "logprobs": 0},
    {"repetition_penalty": 10, "presence_penalty": -2, "frequency_penalty": 2.0},
]

BAD = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("top_k", -1),
    ("top_k", 2.0),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", math.nan),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", 11),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("seed", 2**64),
    ("seed", 1.0),
    ("stop", ("",)),
    ("stop", "text"),
    ("stop", ("a", 1)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", [1]),
    ("ignore_eos", 1),
    ("logprobs", -1),
    ("logprobs", 21),
]


@pytest.mark.parametrize("fields", GOOD)
def test_accepts_what_is_in_range(fields):
    SamplingParams(**fields).validate()


@pytest.mark.parametrize(("name", "value"), BAD)
def test_names_the_field_its_value_and_a_remedy(name, value):
    with pytest.raises(InvalidRequest) as caught:
        replace(SamplingParams(), **{name: value}).validate()
    assert caught.value.message.startswith(f"{name} is {value!r}")
    assert name in caught.value.remedy


def test_defaults_are_those_of_the_openai_api():
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.top_p) == (256, 1.0, 1.0)
    assert not params.greedy
    assert not params.penalised
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(presence_penalty=0.1).penalised
