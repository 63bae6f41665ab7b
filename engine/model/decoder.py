"""The decoder of Llama, Mistral, Qwen2 and Qwen3, over a batch of tokens without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from agentrt.engine.attention.base import AttentionStep, OperandStep, RawAttentionStep
from agentrt.engine.model.base import on_its_device
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.fp8 import Fp8Linear
from agentrt.engine.model.fused import FusedLayers
from agentrt.engine.model.linear import Embedding, Linear, LinearLayer, PackedEmbedding
from agentrt.engine.model.ops import SmallOps, TorchOps, rms_norm
from agentrt.engine.model.rope import Rope, rotate
from agentrt.engine.parallel.group import ALONE, Group, ShardedEmbedding
from agentrt.engine.parallel.sharding import Cut

if TYPE_CHECKING:
    from agentrt.engine.attention.native.library import NativeLibrary
    from agentrt.engine.lora.batch import AdapterBatch

__all__ = ["Decoder", "Layer"]

_Apply: TypeAlias = Callable[[int, str, LinearLayer, torch.Tensor], torch.Tensor]
"""Applies a linear of a layer, the place of which in the layer is named."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. ``qkv`` and ``gate_up`` hold their parts' outputs one after another.

    ``qk_norm [query heads + kv heads, head dim]`` has a row for each head; None without qk-norm.
    """

    input_norm: torch.Tensor
    qkv: LinearLayer
    qk_norm: torch.Tensor | None
    out: LinearLayer
    mlp_norm: torch.Tensor
    gate_up: LinearLayer
    down: LinearLayer


class Decoder:
    """A loaded model. It keeps no state between calls: keys and values live in the attention.

    Args:
        config: the model's shape.
        embedding: ``[vocab, hidden]``.
        layers: one entry a layer, first to last.
        norm: weight of the last norm, ``[hidden]``.
        head: from hidden to vocabulary; shares ``embedding`` where the model ties them.
        group: the ranks that hold a part of every layer each. ``config`` then has this rank's heads
            and inner values, and the whole vocabulary; logits come out on rank 0 alone.
        rows: which token ids ``embedding`` and ``head`` have; needed with several ranks.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        layers: Sequence[Layer],
        norm: torch.Tensor,
        head: Linear,
        group: Group = ALONE,
        rows: Cut | None = None,
    ) -> None:
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self._group = group
        self._embed: Embedding | PackedEmbedding | ShardedEmbedding = Embedding(embedding)
        if rows is not None:
            self._embed = ShardedEmbedding(self._embed, rows, group)
        self._layers = list(layers)
        self._norm = norm
        self._head: LinearLayer = head
        self._rope = Rope(config.rope, embedding.device)
        self._ops: SmallOps = TorchOps()
        self._fused: FusedLayers | None = None

    @property
    def has_fp8(self) -> bool:
        """Whether the layers' weights are kept as fp8."""
        return any(isinstance(layer.qkv, Fp8Linear) for layer in self._layers)

    def rebuild(
        self, linear: Callable[[LinearLayer], LinearLayer], ops: SmallOps | None = None
    ) -> LinearLayer:
        """Replace every linear layer by what ``linear`` makes of it, one after another.

        The old layers are let go as they are replaced. Returns the new output layer.
        """
        for index, layer in enumerate(self._layers):
            self._layers[index] = replace(
                layer,
                qkv=linear(layer.qkv),
                out=linear(layer.out),
                gate_up=linear(layer.gate_up),
                down=linear(layer.down),
            )
        self._head = linear(self._head)
        self._ops = ops or self._ops
        return self._head

    def fuse(self, library: NativeLibrary) -> None:
        """Run each layer as one native call from now on, where all of them are packed.

        Between ranks a layer is none: it has two sums over them.
        """
        if self._group.size == 1 and FusedLayers.fits(self._layers):
            self._fused = FusedLayers(library, self._layers, self.config.norm_eps)

    def share_embedding(self, embed: PackedEmbedding) -> None:
        """Look tokens up in ``embed`` from now on, and let the table go."""
        self._embed = (
            self._embed.over(embed) if isinstance(self._embed, ShardedEmbedding) else embed
        )

    @torch.inference_mode()
    @on_its_device
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        rows: torch.Tensor,
        adapters: AdapterBatch | None = None,
    ) -> torch.Tensor:
        """Run the batch through all layers; its keys and values go to the attention's pages.

        Args:
            tokens: token ids ``[T]`` int64, all slices one after another.
            positions: each token's position in its sequence, ``[T]`` int64.
            attention: the step planned for exactly these slices.
            rows: which of the ``T`` rows to return logits for, ``[R]`` int64; may be empty.
            adapters: what some of the rows go through beside the model's own weights.

        Returns:
            Logits ``[R, vocab]`` in fp32; on ranks after the first, only those of their rows.
        """
        ops, eps, reduce = self._ops, self.config.norm_eps, self._group.reduce
        apply = _plain if adapters is None else adapters.apply
        x = self._embed(tokens)
        delta: torch.Tensor | None = None
        fused = self._fused if adapters is None else None  # its layers know no adapters
        if fused is not None and isinstance(attention, OperandStep):
            delta = fused.run(x, attention, self._turns(positions))
        else:
            attend = self._attend_with(attention, positions, x.dtype, apply)
            for index, layer in enumerate(self._layers):
                x, normed = ops.add_norm(x, delta, layer.input_norm, eps)
                attended = reduce(attend(index, layer, normed))
                x, normed = ops.add_norm(x, attended, layer.mlp_norm, eps)
                gate_up = apply(index, "gate_up", layer.gate_up, normed)
                delta = reduce(apply(index, "down", layer.down, ops.silu_mul(gate_up)))
        last = None if delta is None else delta[rows]
        logits = self._head.wide(ops.add_norm(x[rows], last, self._norm, eps)[1])
        return self._group.gather(logits)[:, : self.config.vocab_size]

    def _turns(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines ``[T, head dim / 2]`` in fp32."""
        cos, sin = self._rope.at(positions, torch.float32)
        return cos.squeeze(1), sin.squeeze(1)

    def _attend_with(
        self,
        attention: AttentionStep,
        positions: torch.Tensor,
        dtype: torch.dtype,
        apply: _Apply,
    ) -> Callable[[int, Layer, torch.Tensor], torch.Tensor]:
        """Return what computes the attention block of a layer on this batch."""
        if isinstance(attention, RawAttentionStep):
            turns = self._turns(positions)
            return lambda index, layer, x: self._attend_raw(
                index, layer, x, attention, turns, apply
            )
        rotation = self._rope.at(positions, dtype)
        return lambda index, layer, x: self._attend(index, layer, x, attention, rotation, apply)

    def _attend_raw(
        self,
        index: int,
        layer: Layer,
        x: torch.Tensor,
        attention: RawAttentionStep,
        rotation: tuple[torch.Tensor, torch.Tensor],
        apply: _Apply,
    ) -> torch.Tensor:
        heads = apply(index, "qkv", layer.qkv, x).view(x.shape[0], -1, self.config.head_dim)
        eps = self.config.norm_eps
        attended = attention.attend_raw(index, heads, layer.qk_norm, eps, rotation)
        return apply(index, "out", layer.out, attended.flatten(1))

    def _attend(
        self,
        index: int,
        layer: Layer,
        x: torch.Tensor,
        attention: AttentionStep,
        rotation: tuple[torch.Tensor, torch.Tensor],
        apply: _Apply,
    ) -> torch.Tensor:
        config = self.config
        heads = apply(index, "qkv", layer.qkv, x).view(x.shape[0], -1, config.head_dim)
        qk, v = heads.tensor_split((config.num_heads + config.num_kv_heads,), dim=1)
        if layer.qk_norm is not None:
            qk = rms_norm(qk, layer.qk_norm, config.norm_eps)
        q, k = rotate(qk, *rotation).tensor_split((config.num_heads,), dim=1)
        return apply(index, "out", layer.out, attention.attend(index, q, k, v).flatten(1))


def _plain(layer: int, site: str, linear: LinearLayer, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear without adapters."""
    del layer, site
    return linear(x)
