"""The small operations between linear layers and attention in Triton, which it imports."""

from __future__ import annotations

import torch

from agentrt.engine.triton.activation import silu_mul
from agentrt.engine.triton.norm import add_norm

__all__ = ["TritonOps"]


class TritonOps:
    """Our kernels: one pass over memory each, on CUDA (and in the interpreter)."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``delta`` to ``x`` in place; return ``x`` and its RMS norm."""
        return x, add_norm(x, delta, weight, eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return ``silu(gate) * up``."""
        return silu_mul(gate_up)
