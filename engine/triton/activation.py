"""The gate of the MLP: ``silu(gate) * up`` in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["silu_mul", "silu_mul_kernel"]

BLOCK = 1024


@triton.jit
def silu_mul_kernel(
    x_ptr: tl.tensor, out_ptr: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Do a block of one row; the grid is ``(rows, blocks)``."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < WIDTH
    gate = tl.load(x_ptr + row * 2 * WIDTH + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + (row * 2 + 1) * WIDTH + index, mask=inside, other=0.0).to(tl.float32)
    # Rounded between the steps, as torch does.
    silu = (gate / (1.0 + tl.exp(-gate))).to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + index, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up`` ``[T, n]`` of a contiguous ``[T, 2 * n]``, gate first."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](
        gate_up, out, WIDTH=width, BLOCK=BLOCK, num_warps=4
    )
    return out
