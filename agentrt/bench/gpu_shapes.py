"""The shapes that GPU rows are measured at, as data, and tiny ones for dry runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentrt.engine.model.config import ModelConfig

__all__ = ["CONFIGS", "gpu_shape"]


def _qwen3(**sizes: Any) -> dict[str, Any]:
    """Return a ``config.json`` of Qwen3 with these sizes."""
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        **sizes,
    }


_TINY: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
}

CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "8B": _qwen3(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "0.6B": _qwen3(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "tiny-untied": _qwen3(**_TINY, tie_word_embeddings=False),
    "tiny-tied": _qwen3(**_TINY, tie_word_embeddings=True),
}
"""``8B`` and ``0.6B`` are Qwen3-8B and Qwen3-0.6B as published."""


def gpu_shape(name: str) -> ModelConfig:
    """Return one of :data:`CONFIGS` as our decoder reads it."""
    return ModelConfig.from_mapping(CONFIGS[name], Path(f"{name}.json"))
