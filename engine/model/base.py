"""What a loaded model looks like to whoever runs it, however it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from agentrt.engine.attention.base import AttentionStep
from agentrt.engine.model.config import ModelShape

if TYPE_CHECKING:
    from agentrt.engine.lora.batch import AdapterBatch

__all__ = ["Model"]


class Model(Protocol):
    """Computes logits; keeps no state between calls: keys and values live in the attention."""

    @property
    def config(self) -> ModelShape:
        """Return the model's shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and activations."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        ...

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        rows: torch.Tensor,
        adapters: AdapterBatch | None = None,
    ) -> torch.Tensor:
        """Run a batch; see :meth:`agentrt.engine.model.decoder.Decoder.forward`."""
        ...
