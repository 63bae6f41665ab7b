"""RMSNorm, alone and after adding to the residual stream: one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentrt.engine.triton.configs import next_power

__all__ = ["add_norm", "add_norm_kernel"]


@triton.jit
def add_norm_kernel(
    x_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Add ``delta`` to a row of ``x`` in place and norm it; the grid is ``(rows,)``."""
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    index = tl.arange(0, BLOCK)
    inside = index < HIDDEN
    x = tl.load(x_ptr + row + index, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + row + index, mask=inside, other=0.0).to(tl.float32)
        # The norm is of what the stream holds: of the rounded sum.
        rounded = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row + index, rounded, mask=inside)
        x = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / HIDDEN + eps)
    # Rounded before it is scaled, as rms_norm of engine/model/ops.py and the models' own code do.
    normed = (x * factor).to(x_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + index, (normed * weight).to(out_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add ``delta`` to ``x`` in place, where there is one; return the sum's RMS norm.

    Args:
        x: ``[T, hidden]``, contiguous.
        delta: as ``x``, or None.
        weight: ``[hidden]``.
        eps: of the norm.

    Returns:
        ``[T, hidden]`` in the dtype of ``x``.
    """
    rows, hidden = x.shape
    out = torch.empty_like(x)
    block = next_power(hidden)
    add_norm_kernel[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        out,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ADD=delta is not None,
        num_warps=min(16, max(1, block // 512)),  # 16 numbers a thread
    )
    return out
