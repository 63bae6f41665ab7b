"""The shapes of the checkpoints that we make ourselves, and their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrt.errors import InvalidRequest

__all__ = ["ARCHS", "SIZES", "Size", "config_json"]


@dataclass(frozen=True, slots=True)
class Size:
    """A shape. ``vocab`` is the rows of the embedding, ``words`` the entries of the tokenizer."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    words: int
    positions: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(64, 128, 2, 4, 2, 16, 512, 512, 8192),
    "15m": Size(512, 1536, 4, 8, 2, 64, 4096, 4096, 131072),
    "135m": Size(576, 1536, 30, 9, 3, 64, 49152, 4096, 131072),
    "600m": Size(1024, 3072, 28, 16, 8, 128, 151936, 4096, 131072),
}
"""``tiny`` is for tests, ``15m`` for demonstrations; the others are shaped like real models."""

ARCHS: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Architectures by ``model_type``, with the class name that config.json states."""

_EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "rope_theta": 500000.0},
    "mistral": {"sliding_window": None, "rope_theta": 1000000.0},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "rope_theta": 1000000.0},
    "qwen3": {
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_theta": 1000000.0,
    },
}


def config_json(arch: str, size: str, *, dtype: str, eos: int, pad: int) -> dict[str, Any]:
    """Return ``config.json`` of a made checkpoint.

    Args:
        arch: one of :data:`ARCHS`.
        size: one of :data:`SIZES`.
        dtype: of the weights, ``bfloat16`` or ``float32``.
        eos: token id that ends a turn.
        pad: token id for padding.

    Raises:
        InvalidRequest: an unknown architecture, size or dtype.
    """
    _choice("arch", arch, ARCHS)
    _choice("size", size, SIZES)
    _choice("dtype", dtype, ("bfloat16", "float32"))
    shape = SIZES[size]
    return {
        "architectures": [ARCHS[arch]],
        "model_type": arch,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": arch != "mistral",
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        **_EXTRAS[arch],
    }


def _choice(name: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidRequest(
            f"There is no {name} {value!r}.", remedy=f"Choose one of {', '.join(known)}."
        )
