"""A decoder of a given shape with random weights, made in memory where it is to run."""

from __future__ import annotations

import torch

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder, Layer
from agentrt.engine.model.fp8 import Fp8Linear, quantize
from agentrt.engine.model.linear import Linear, LinearLayer

__all__ = ["random_model"]


def random_model(
    config: ModelConfig,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    fp8: bool = False,
) -> Decoder:
    """Return a decoder of this shape with weights drawn from ``seed``; takes no file.

    With ``fp8`` the layers' weights are rounded, as they are while a checkpoint is loaded.
    """
    generator = torch.Generator(device).manual_seed(seed)
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, kv = config.num_heads * dim, config.num_kv_heads * dim

    def draw(outputs: int, inputs: int) -> torch.Tensor:
        drawn = torch.randn(outputs, inputs, generator=generator, device=device)
        return drawn.mul_(inputs**-0.5).to(dtype)

    def linear(outputs: int, inputs: int) -> LinearLayer:
        weight = draw(outputs, inputs)
        return Fp8Linear(*quantize(weight)) if fp8 else Linear(weight)

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(*shape, dtype=dtype, device=device)

    def layer() -> Layer:
        return Layer(
            input_norm=ones(hidden),
            qkv=linear(queries + 2 * kv, hidden),
            qk_norm=ones(config.num_heads + config.num_kv_heads, dim) if config.qk_norm else None,
            out=linear(hidden, queries),
            mlp_norm=ones(hidden),
            gate_up=linear(2 * inner, hidden),
            down=linear(hidden, inner),
        )

    embedding = draw(config.vocab_size, hidden)
    head = embedding if config.tied_embeddings else draw(config.vocab_size, hidden)
    layers = [layer() for _ in range(config.num_layers)]
    return Decoder(config, embedding, layers, ones(hidden), Linear(head))
