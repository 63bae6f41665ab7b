"""The small operations between linear layers and attention, in torch and in our own kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from agentrt.engine.attention.native.library import NativeLibrary

__all__ = ["NativeOps", "SmallOps", "TorchOps", "rms_norm"]


class SmallOps(Protocol):
    """Operations on the residual stream ``[T, hidden]`` and on the two halves of the MLP."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``x + delta`` (``x`` without a delta) and its RMS norm; may overwrite ``x``."""
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return ``silu(gate) * up`` of ``[T, 2 * n]``, gate first."""
        ...


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise over the last dimension in fp32, round to the dtype of ``x``, then scale."""
    if x.dtype == torch.float32 and weight.dim() == 1:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    normed = F.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return normed.to(x.dtype) * weight


class TorchOps:
    """Plain torch, on any device."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``x + delta`` and its RMS norm."""
        x = x if delta is None else x + delta
        return x, rms_norm(x, weight, eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return ``silu(gate) * up``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up


class NativeOps:
    """Our kernels: one pass over memory each, on CPU."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``delta`` to ``x`` in place; return ``x`` and its RMS norm."""
        return x, self._library.add_norm(x, delta, weight, eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return ``silu(gate) * up``."""
        return self._library.silu_mul(gate_up)
