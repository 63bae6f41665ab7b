"""Reading config.json: defaults, old and new forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.recipe import config_json
from agentrt.engine.model.rope import RopeConfig
from agentrt.errors import ModelError

FILE = Path("somewhere/config.json")


def raw(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    return config_json(arch, "tiny", dtype="float32", eos=2, pad=0) | changes


def read(arch: str = "llama", **changes: Any) -> ModelConfig:
    return ModelConfig.from_mapping(raw(arch, **changes), FILE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt_neox"}, "gpt_neox.*llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "not supported"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"head_dim": 15}, "odd"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": 7}, "rope"),
        ({"partial_rotary_factor": 0.5}, "partial"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read(**changes)
    assert str(FILE) in str(caught.value)
    assert caught.value.remedy


def test_layer_types_must_fit() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(ModelError, match="layer_types"):
        read("qwen3", layer_types=["full_attention"], **windowed)
    with pytest.raises(ModelError, match="layer_types"):
        read("qwen3", layer_types=["full_attention", "linear_attention"], **windowed)


@pytest.mark.parametrize(
    ("arch", "changes", "windows"),
    [
        ("llama", {"sliding_window": 9}, (None, None)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("mistral", {"sliding_window": 9}, (9, 9)),
        ("qwen2", {"sliding_window": 9}, (None, None)),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True}, (None, None)),
        (
            "qwen2",
            {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
            (None, 9),
        ),
        (
            "qwen3",
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (9, None),
        ),
    ],
)
def test_windows_a_layer(
    arch: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read(arch, **changes).windows == windows


def test_keys_that_files_leave_out_have_the_architecture_s_defaults() -> None:
    def without(arch: str, *keys: str) -> ModelConfig:
        mapping = {key: value for key, value in raw(arch).items() if key not in keys}
        return ModelConfig.from_mapping(mapping, FILE)

    assert without("mistral", "sliding_window").windows == (4096, 4096)
    assert without("qwen3", "head_dim").head_dim == 128
    assert without("llama", "head_dim").head_dim == 16
    assert without("llama", "num_key_value_heads").num_kv_heads == 4
    assert without("llama", "torch_dtype").dtype == "float32"
    assert without("llama", "rope_theta").rope.theta == 10000.0
    assert not without("qwen2", "tie_word_embeddings").tied_embeddings


def test_the_newer_name_of_dtype_is_read_first() -> None:
    assert read(dtype="bfloat16").dtype == "bfloat16"
    assert read(torch_dtype="torch.float16").dtype == "float16"


def test_parameters_and_kv_bytes() -> None:
    config = read("qwen3")
    attention = 64 * (2 * 64 + 2 * 32)
    layer = attention + 3 * 64 * 128 + 2 * 64 + 2 * 16
    assert config.parameters == 512 * 64 + 2 * layer + 64
    assert config.kv_bytes_per_token() == 2 * 2 * 2 * 16 * 4
    assert config.kv_bytes_per_token("bfloat16") == 2 * 2 * 2 * 16 * 2


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist.*agentrt model make"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw()))
    assert ModelConfig.from_directory(tmp_path).arch == "llama"


ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.3},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    {"rope_type": "yarn", "factor": 1.0},
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("old", [False, True])
def test_scaled_frequencies_equal_those_of_transformers(
    rope: dict[str, Any], theta: float, head_dim: int, old: bool
) -> None:
    other = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rope_parameters={**rope, "rope_theta": theta},
    )
    expected, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](other, "cpu")
    mapping: dict[str, Any] = (
        {"rope_theta": theta, "rope_scaling": rope}
        if old
        else {"rope_parameters": {**rope, "rope_theta": theta}}
    )
    ours, own_scale = RopeConfig.from_mapping(mapping, head_dim, 8192, FILE).frequencies()
    assert torch.allclose(ours, expected, rtol=1e-5, atol=0)
    assert own_scale == pytest.approx(scale)
