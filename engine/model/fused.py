"""A decoder's layers in one call, where all of its linear layers are packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from agentrt.engine.attention.base import OperandStep
from agentrt.engine.model.linear import LinearLayer, PackedLinear

if TYPE_CHECKING:
    from agentrt.engine.attention.native.library import NativeLibrary
    from agentrt.engine.model.decoder import Layer

__all__ = ["FusedLayers"]


class FusedLayers:
    """Runs all layers through the native ``Layers``: its threads are woken once for all of them.

    Args:
        library: the kernels.
        layers: the model's layers, all of them on :class:`PackedLinear`.
        eps: of the norms.
    """

    def __init__(self, library: NativeLibrary, layers: Sequence[Layer], eps: float) -> None:
        weights = [weight for layer in layers for weight in _weights(layer)]
        self._run = library.layers(weights, eps).run

    @staticmethod
    def fits(layers: Sequence[Layer]) -> bool:
        """Say whether every linear layer is packed."""
        return bool(layers) and all(
            isinstance(linear, PackedLinear)
            for layer in layers
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )

    def run(
        self,
        x: torch.Tensor,
        attention: OperandStep,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Run all layers over ``x [T, hidden]``, in place; returns what is still to be added."""
        delta: torch.Tensor = self._run(x, *rotation, *attention.operands())
        return delta


def _weights(layer: Layer) -> tuple[torch.Tensor | None, ...]:
    return (
        layer.input_norm,
        *_packed(layer.qkv),
        layer.qk_norm,
        *_packed(layer.out),
        layer.mlp_norm,
        *_packed(layer.gate_up),
        *_packed(layer.down),
    )


def _packed(linear: LinearLayer) -> tuple[torch.Tensor, torch.Tensor | None]:
    assert isinstance(linear, PackedLinear)
    return linear.packed, linear.bias
