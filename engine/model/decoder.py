"""The decoder of Llama, Mistral, Qwen2 and Qwen3, over a batch of tokens without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from agentrt.engine.attention.base import AttentionStep
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.linear import Linear
from agentrt.engine.model.rope import Rope, rotate

__all__ = ["Decoder", "Layer"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. ``qkv`` and ``gate_up`` hold their parts' outputs one after another.

    ``qk_norm [query heads + kv heads, head dim]`` has a row for each head; None without qk-norm.
    """

    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """A loaded model. It keeps no state between calls: keys and values live in the attention.

    Args:
        config: the model's shape.
        embedding: ``[vocab, hidden]``.
        layers: one entry a layer, first to last.
        norm: weight of the last norm, ``[hidden]``.
        head: from hidden to vocabulary; shares ``embedding`` where the model ties them.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        layers: Sequence[Layer],
        norm: torch.Tensor,
        head: Linear,
    ) -> None:
        self.config = config
        self._embedding = embedding
        self._layers = tuple(layers)
        self._norm = norm
        self._head = head
        self._rope = Rope(config.rope, embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and activations."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self._embedding.device

    @torch.inference_mode()
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Run the batch through all layers; its keys and values go to the attention's pages.

        Args:
            tokens: token ids ``[T]`` int64, all slices one after another.
            positions: each token's position in its sequence, ``[T]`` int64.
            attention: the step planned for exactly these slices.
            rows: which of the ``T`` rows to return logits for, ``[R]`` int64; may be empty.

        Returns:
            Logits ``[R, vocab]`` in fp32.
        """
        x = F.embedding(tokens, self._embedding)
        cos, sin = self._rope.at(positions, x.dtype)
        for index, layer in enumerate(self._layers):
            x = x + self._attend(index, layer, self._rms(x, layer.input_norm), cos, sin, attention)
            x = x + _mlp(layer, self._rms(x, layer.mlp_norm))
        return self._head(self._rms(x[rows], self._norm)).float()

    def _attend(
        self,
        index: int,
        layer: Layer,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: AttentionStep,
    ) -> torch.Tensor:
        config = self.config
        heads = layer.qkv(x).view(x.shape[0], -1, config.head_dim)
        qk, v = heads.tensor_split((config.num_heads + config.num_kv_heads,), dim=1)
        if layer.qk_norm is not None:
            qk = self._rms(qk, layer.qk_norm)
        q, k = rotate(qk, cos, sin).tensor_split((config.num_heads,), dim=1)
        return layer.out(attention.attend(index, q, k, v).flatten(1))

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Normalise over the last dimension in fp32, round to the model's dtype, then scale."""
        if x.dtype == torch.float32 and weight.dim() == 1:
            return F.rms_norm(x, (x.shape[-1],), weight, self.config.norm_eps)
        normed = F.rms_norm(x.float(), (x.shape[-1],), None, self.config.norm_eps)
        return normed.to(x.dtype) * weight


def _mlp(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    gate, up = layer.gate_up(x).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)
