"""The linear layer, plain and over packed weights: everything about weight layouts lives here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from agentrt.engine.attention.native.library import NativeLibrary

__all__ = [
    "Embedding",
    "Int8Linear",
    "Linear",
    "LinearLayer",
    "OneDnnLinear",
    "PackedEmbedding",
    "PackedLinear",
    "onednn_works",
]


class LinearLayer(Protocol):
    """``x @ weight.T + bias`` with ``weight [out, in]`` and an optional ``bias [out]``."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]`` in the dtype of ``x``."""
        ...

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; returns ``[T, out]`` in fp32."""
        ...


class Linear:
    """The plain layer, in any dtype and on any device."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        return F.linear(x, self.weight, self.bias)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; the result is rounded to the dtype of ``x`` and returned in fp32."""
        return self(x).float()


class PackedLinear:
    """bf16 on CPU with the weight in the order in which our kernel reads it, for any ``T``.

    Args:
        library: the kernels.
        linear: the layer to pack; its weight ``[out, in]`` is not kept.
    """

    __slots__ = ("_apply", "bias", "outputs", "packed")

    def __init__(self, library: NativeLibrary, linear: Linear) -> None:
        self._apply = library.linear
        self.packed = library.pack(linear.weight)
        self.outputs = linear.weight.shape[0]
        self.bias = linear.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        return self._apply(x.contiguous(), self.packed, self.outputs, self.bias, False)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; the fp32 sums are returned unrounded."""
        return self._apply(x.contiguous(), self.packed, self.outputs, self.bias, True)


class Int8Linear:
    """Weights in int8 with a scale for each output and 64 inputs; activations in bf16, on CPU.

    Half of the memory of bf16. Weights are off by 0.6 % of their size (root mean square).
    """

    __slots__ = ("_apply", "bias", "outputs", "packed", "scales")

    def __init__(self, library: NativeLibrary, linear: Linear) -> None:
        self._apply = library.linear8
        self.packed, self.scales = library.pack8(linear.weight.float().contiguous())
        self.outputs = linear.weight.shape[0]
        self.bias = linear.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        return self._run(x, False)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; the fp32 sums are returned unrounded."""
        return self._run(x, True)

    def _run(self, x: torch.Tensor, wide: bool) -> torch.Tensor:
        x = x.contiguous()
        return self._apply(x, self.packed, self.scales, self.outputs, self.bias, wide)


class OneDnnLinear:
    """bf16 on CPU through oneDNN's own weight layout: what is left where ours cannot be built.

    The two operators are private to torch; they are called here and nowhere else.
    """

    __slots__ = ("_apply", "bias", "packed")

    def __init__(self, linear: Linear) -> None:
        # One packing, for one row: the others that oneDNN would choose are no faster.
        self.packed = _onednn("_reorder_linear_weight")(linear.weight, 1)
        self._apply = _onednn("_linear_pointwise")
        self.bias = linear.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        y: torch.Tensor = self._apply(x, self.packed, self.bias, "none", [], "")
        return y

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; the result is rounded to bf16 and returned in fp32."""
        return self(x).float()


def _onednn(name: str) -> Callable[..., Any]:
    operator: Callable[..., Any] = getattr(torch.ops.mkldnn, name)
    return operator


def onednn_works() -> str | None:
    """Try :class:`OneDnnLinear` on a small layer; returns what is wrong, or None if it works."""
    linear = Linear(torch.eye(16, dtype=torch.bfloat16))
    x = torch.ones(2, 16, dtype=torch.bfloat16)
    try:
        same = torch.equal(OneDnnLinear(linear)(x), x)
    except (AttributeError, RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]
    return None if same else "its result is wrong"


class Embedding:
    """Rows of ``weight [vocab, hidden]`` by token id."""

    __slots__ = ("weight",)

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``tokens [T]``, a new tensor ``[T, hidden]``."""
        return F.embedding(tokens, self.weight)


class PackedEmbedding:
    """Rows of the weight that a packed output layer holds: tied weights are kept once."""

    __slots__ = ("_packed", "_rows")

    def __init__(self, library: NativeLibrary, head: PackedLinear) -> None:
        self._rows = library.rows
        self._packed = head.packed

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``tokens [T]``, a new tensor ``[T, hidden]``."""
        return self._rows(self._packed, tokens)
