"""The linear layer: one small class, so that a faster weight layout has one place to live."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["Linear"]


class Linear:
    """``x @ weight.T + bias`` with ``weight [out, in]`` and an optional ``bias [out]``."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        return F.linear(x, self.weight, self.bias)
