"""Products of few rows with weights in fp8: bound by reading the weights, so they are read as fp8.

The weight is the left operand: its outputs are the rows of a tile, and the few rows of ``x`` its
columns, at least sixteen. So a tile is full even for one row of ``x``, and a weight goes from the
load to the matrix unit through registers, where it is widened. What a program sums over is split
where there would be fewer programs than fill the device; the parts are added in fixed order, so the
result depends on the shapes alone. Scales come last, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Tiling", "linear8", "product_kernel", "sum_kernel", "tiling"]

LEAST_COLUMNS, MOST_COLUMNS = 16, 64
PROGRAMS = 4 * 132
"""Programs that keep a GPU of 132 multiprocessors busy: four for each, as each waits for memory.
A constant, so that results are the same on every device."""
MOST_PARTS = 16
SUM_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut: outputs, inputs and rows of a tile, parts of the sum, warps, stages.

    128 inputs of fp8 are a whole line of memory. At 64 outputs a tile is 8 KiB; four stages and
    four programs of a multiprocessor keep 128 KiB in flight, where 25 KiB would cover the latency
    of the memory and the rest covers that of widening.
    """

    outputs: int
    inputs: int
    columns: int
    parts: int
    warps: int = 4
    stages: int = 4


def tiling(rows: int, outputs: int, inputs: int) -> Tiling:
    """Return how to cut a product of ``rows`` with a weight ``[outputs, inputs]``."""
    columns = LEAST_COLUMNS
    while columns < min(rows, MOST_COLUMNS):
        columns *= 2
    tile = Tiling(64 if columns < MOST_COLUMNS else 128, 128, columns, 1)
    programs = triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, columns)
    steps = triton.cdiv(inputs, tile.inputs)
    parts = max(1, min(MOST_PARTS, PROGRAMS // programs, steps // 2))
    return Tiling(tile.outputs, tile.inputs, columns, parts)


@triton.jit
def product_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    STEPS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Compute one part of one tile; the grid is ``(output blocks, row blocks, parts)``.

    ``out [parts, rows, outputs]`` in fp32. ``STEPS`` blocks of inputs are summed in each part.
    """
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    there, real = output < outputs, row < rows
    weights = weight_ptr + output.to(tl.int64)[:, None] * inputs
    values = x_ptr + row[None, :] * inputs
    total = tl.zeros((OUTPUTS, COLUMNS), dtype=tl.float32)
    for step in range(STEPS):
        index = (part * STEPS + step) * INPUTS + tl.arange(0, INPUTS)
        inside = index < inputs
        weight = tl.load(weights + index[None, :], there[:, None] & inside[None, :], 0.0)
        x = tl.load(values + index[:, None], inside[:, None] & real[None, :], 0.0)
        total = tl.dot(weight.to(DOT), x.to(DOT), total, input_precision="ieee")
    scale = tl.load(scale_ptr + output, there, 0.0)
    total *= scale[:, None]
    place = (part * rows + row).to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(out_ptr + place, total, there[:, None] & real[None, :])


@triton.jit
def sum_kernel(
    part_ptr: tl.tensor,
    out_ptr: tl.tensor,
    count: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add ``parts [PARTS, count]`` into ``out [count]``, in order; the grid is ``(blocks,)``."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    total = tl.load(part_ptr + index, inside, 0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(part_ptr + part * count + index, inside, 0.0)
    tl.store(out_ptr + index, total, inside)


def linear8(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, tile: Tiling | None = None
) -> torch.Tensor:
    """Return ``x @ (weight * scales).T`` in fp32.

    Args:
        x: ``[T, in]`` in bf16 or fp32, contiguous.
        weight: ``[out, in]`` in ``float8_e4m3fn``, contiguous.
        scales: ``[out]`` in fp32.
        tile: how to cut it; None is :func:`tiling`.

    Returns:
        ``[T, out]`` in fp32.
    """
    rows, inputs = x.shape
    outputs = weight.shape[0]
    tile = tile or tiling(rows, outputs, inputs)
    steps = triton.cdiv(triton.cdiv(inputs, tile.inputs), tile.parts)
    parts = torch.empty((tile.parts, rows, outputs), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.columns), tile.parts)
    product_kernel[grid](
        x,
        weight,
        scales,
        parts,
        rows,
        outputs,
        inputs,
        STEPS=steps,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs,
        COLUMNS=tile.columns,
        DOT=_dot(x.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if tile.parts == 1:
        return parts[0]
    out = torch.empty((rows, outputs), dtype=torch.float32, device=x.device)
    sum_kernel[(triton.cdiv(out.numel(), SUM_BLOCK),)](
        parts, out, out.numel(), PARTS=tile.parts, BLOCK=SUM_BLOCK
    )
    return out


def _dot(dtype: torch.dtype) -> tl.dtype:
    """Return what is multiplied; numpy, and with it the interpreter, knows no bfloat16."""
    narrow = dtype == torch.bfloat16 and not triton.knobs.runtime.interpret
    return tl.bfloat16 if narrow else tl.float32
