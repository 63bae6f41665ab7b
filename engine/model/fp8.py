"""Linear layers with weights in eight bits of floating point (e4m3), on any device.

A weight is kept as ``float8_e4m3fn [out, in]`` with a scale for each output, a power of two: what
it stands for has at most four significant bits, so it is exact in bf16 as in fp32, and scaling a
sum is the same as scaling its weights. A power of two costs nothing: in floating point the relative
error does not depend on where in the range a number lies, until it is too small. The smallest
normal number is 2**15 below the largest. Normal random weights are off by 2.66 % (root mean square)
with such scales, and by 2.64 % with scales that bring the largest weight to the very end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

__all__ = ["FP8", "Fp8Linear", "Fp8Product", "dequantize", "few_rows", "quantize"]

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
CHUNK_BYTES = 64 << 20
"""Of weights that are widened at once; what a step needs beside activations."""
MOST_FEW_ROWS = 256

Fp8Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x [T, in], weight [out, in] fp8, scales [out] fp32) -> [T, out]`` in fp32, unrounded."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``weight [out, in]`` to fp8.

    Returns:
        The weight as ``float8_e4m3fn [out, in]``, and scales ``[out]`` in fp32: for each output the
        least power of two that brings its largest weight within the range of fp8.
    """
    wide = weight.float()
    mantissa, exponent = torch.frexp(wide.abs().amax(1) / FP8_MAX)
    # frexp's mantissa is in [0.5, 1): at 0.5 the number is a power of two itself.
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    scales = torch.ldexp(torch.ones_like(mantissa), exponent.clamp(-100, 100))
    return (wide / scales[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales


def dequantize(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what fp8 ``weight [out, in]`` with ``scales [out]`` stands for, exactly."""
    return weight.to(dtype).mul_(scales.to(dtype)[:, None])


def few_rows(rows: int) -> bool:
    """Say whether ``rows`` are few enough to read weights as fp8 inside the product.

    Widening first moves five bytes a weight (one read, two written, two read) and then multiplies
    at the full rate ``P``; a product that widens on the way moves one byte and multiplies at a part
    ``e`` of it. With ``B`` bytes a second the first is the quicker from ``rows = 5 P / (2 B (1/e -
    1))`` on: at 224 flop a byte (H100, H200) and ``e = 1/2`` from 560, and with larger ``e`` later.
    256 is on the safe side of it, and covers the decode batches that are captured as graphs, which
    should hold no widened weights.
    """
    return rows <= MOST_FEW_ROWS


class Fp8Linear:
    """``x @ weight.T + bias`` over an fp8 weight.

    Args:
        weight: ``[out, in]`` in ``float8_e4m3fn``.
        scales: ``[out]`` in fp32.
        bias: ``[out]``, or None.
        product: computes few rows; without it, and for many rows, weights are widened in pieces.
    """

    __slots__ = ("_product", "bias", "scales", "weight")

    def __init__(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None = None,
        product: Fp8Product | None = None,
    ) -> None:
        self.weight = weight
        self.scales = scales
        self.bias = bias
        self._product = product

    def with_product(self, product: Fp8Product) -> Fp8Linear:
        """Return the same layer with a kernel for few rows."""
        return Fp8Linear(self.weight, self.scales, self.bias, product)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``x [T, in]``; returns ``[T, out]``."""
        if self._product is not None and few_rows(x.shape[0]):
            y = self._product(x.contiguous(), self.weight, self.scales)
            return (y if self.bias is None else y + self.bias.float()).to(x.dtype)
        return self._widened(x)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer; the result is rounded to the dtype of ``x`` and returned in fp32."""
        return self(x).float()

    def _widened(self, x: torch.Tensor) -> torch.Tensor:
        """Widen as many outputs as fit a piece, multiply, go on with the next."""
        outputs, inputs = self.weight.shape
        piece = max(1, CHUNK_BYTES // (inputs * x.element_size()))
        y = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device)
        for start in range(0, outputs, piece):
            part = slice(start, start + piece)
            weight = dequantize(self.weight[part], self.scales[part], x.dtype)
            y[:, part] = F.linear(x, weight, None if self.bias is None else self.bias[part])
        return y
