"""What a step must cost at least, from bytes and operations: the bounds of the GPU rows. Pure.

A step that decodes has to read every weight once (of the embedding only rows) and the keys and
values of every sequence; a prompt has to be multiplied with every weight but those of embedding
and head. Bytes are bytes, rates are a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentrt.bench.gpu_workload import Request
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.sizes import weight_bytes as kept_bytes

__all__ = [
    "Rates",
    "decode_seconds",
    "ideal_seconds",
    "prefill_operations",
    "step_bytes",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does: ``copy`` bytes read and written, ``matrix`` operations (2 an add)."""

    copy: float
    matrix: float


def weight_bytes(config: ModelConfig, element: int = 2, quant: str | None = None) -> int:
    """Return the bytes of weights that a decoding step reads: all, tied tables once.

    ``element`` is the width of those that ``quant`` does not narrow.
    """
    table = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
    return kept_bytes(config, element, quant) - table * element


def step_bytes(
    config: ModelConfig,
    batch: int,
    context: int,
    quant: str | None = None,
    kv_token: int | None = None,
) -> int:
    """Return the bytes that a decoding step reads: weights, and ``context`` tokens a sequence.

    Args:
        config: the model's shape.
        batch: sequences.
        context: tokens of each one, the new one included.
        quant: what the weights are kept as; None: bf16.
        kv_token: bytes of one token's keys and values; None: two bytes a number.
    """
    token = config.kv_bytes_per_token("bfloat16") if kv_token is None else kv_token
    return weight_bytes(config, quant=quant) + batch * context * token


def decode_seconds(config: ModelConfig, batch: int, context: int, copy: float) -> float:
    """Return the least seconds of a decoding step."""
    return step_bytes(config, batch, context) / copy


def _multiplied(config: ModelConfig) -> int:
    """Return the weights that each token of a prompt is multiplied with."""
    tables = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    return config.parameters - tables


def prefill_operations(config: ModelConfig, tokens: int) -> int:
    """Return the operations of a prompt's linear layers and of its causal attention.

    ``2 * weights`` a token; attention multiplies each query with half of the keys and then of the
    values, ``2 * tokens^2 * head dim`` for each head of each layer.
    """
    linear = 2 * _multiplied(config) * tokens
    heads = config.num_layers * config.num_heads
    return linear + 2 * heads * config.head_dim * tokens**2


def ideal_seconds(config: ModelConfig, requests: Iterable[Request], rates: Rates) -> float:
    """Return the least seconds for requests that are all there at once and all run together.

    Prompts at the matrix rate (their attention left out: it is small here), then as many steps as
    the longest output has, each at the copy rate over what still runs.
    """
    asked = list(requests)
    prompts = sum(one.input for one in asked)
    prefill = 2 * _multiplied(config) * prompts / rates.matrix
    steps = max(one.output for one in asked)
    # A sequence of n tokens and m answers is read at n + 1, n + 2, ... n + m tokens.
    read = sum(one.output * one.input + one.output * (one.output + 1) // 2 for one in asked)
    token = config.kv_bytes_per_token("bfloat16")
    return prefill + (steps * weight_bytes(config) + read * token) / rates.copy
