"""What a loaded model looks like to whoever runs it, however it is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from agentrt.engine.attention.base import AttentionStep
from agentrt.engine.model.config import ModelShape

if TYPE_CHECKING:
    from agentrt.engine.lora.batch import AdapterBatch

__all__ = ["Model", "on_its_device"]

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


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


class _Placed(Protocol):
    @property
    def device(self) -> torch.device: ...


_Self = TypeVar("_Self", bound=_Placed)


def on_its_device(
    method: Callable[Concatenate[_Self, _P], _Result],
) -> Callable[Concatenate[_Self, _P], _Result]:
    """Make the GPU that ``self.device`` names the current one while ``method`` runs.

    Torch's operations go where their tensors are; Triton's kernels go to the current device, which
    is a thread's own and the first one unless somebody says otherwise.
    """

    @wraps(method)
    def placed(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _Result:
        if self.device.type != "cuda":
            return method(self, *args, **kwargs)
        with torch.cuda.device(self.device):
            return method(self, *args, **kwargs)

    return placed
