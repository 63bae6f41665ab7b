"""Keys and values on their way into the pages: norm, rotation, rounding to eight bits, one launch.

A program takes one token and a block of its heads. Query heads are normed, rotated and written back
in place; key heads are normed, rotated and stored; value heads are stored. A token whose slot is
negative is padding and stores nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentrt.engine.attention.quantized import FP8_MAX, INT8_MAX, SMALLEST_SCALE
from agentrt.engine.triton.configs import next_power
from agentrt.engine.triton.work import LayerPages

__all__ = ["rotate_store", "rotate_store_kernel", "store", "store_kernel"]

HEADS = 8
"""Most heads of a program: two warps' worth of loads at head dim 128."""
WARPS = 4
_SAME, _INT8, _FP8 = 0, 1, 2


@triton.jit
def round_int8(x: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Return ``x / scale`` as int8, halves to even.

    Adding and taking away 1.5 * 2**23 leaves no bits below one; a cast alone would cut.
    """
    return ((tl.div_rn(x, scale) + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def round_fp8(x: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """Return ``x`` as e4m3, cut at the largest number, halves to even.

    It is rounded as fp32 first, to three bits of mantissa or, where these are denormal, to
    multiples of 2**-9. What is left for the cast is exact, on every device and in the interpreter.
    """
    cut = tl.where(x > LARGEST, LARGEST, tl.where(x < -LARGEST, -LARGEST, x))
    bits = cut.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    # The same trick as for int8, for multiples of 2**-9: the constant is 1.5 * 2**14.
    small = (cut + 24576.0) - 24576.0
    small = tl.where(small == 0.0, cut * 0.0, small)  # keeps the sign
    rounded = tl.where(tl.abs(cut) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    # Not a number stays one: as bits it might have been rounded to infinity.
    return tl.where(cut == cut, rounded, cut).to(tl.float8e4nv)


@triton.jit
def put(
    first: tl.tensor,
    second: tl.tensor,
    pointer: tl.tensor,
    scale_pointer: tl.tensor,
    cell: tl.tensor,
    index: tl.tensor,
    keep: tl.tensor,
    rows: tl.tensor,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    INT8_LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
) -> None:
    """Store both halves ``[heads, half]`` of vectors, in fp32, at ``cell [heads]``."""
    low = pointer + cell[:, None] * DIM + index[None, :]
    high = low + DIM // 2
    if KIND == 1:
        top = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.maximum(tl.div_rn(top, INT8_LIMIT), SMALLEST)
        tl.store(scale_pointer + cell, scale, mask=rows)
        tl.store(low, round_int8(first, scale[:, None]), mask=keep)
        tl.store(high, round_int8(second, scale[:, None]), mask=keep)
    elif KIND == 2:
        tl.store(low, round_fp8(first, FP8_LIMIT), mask=keep)
        tl.store(high, round_fp8(second, FP8_LIMIT), mask=keep)
    else:
        tl.store(low, first.to(pointer.dtype.element_ty), mask=keep)
        tl.store(high, second.to(pointer.dtype.element_ty), mask=keep)


@triton.jit
def rotate_store_kernel(
    heads_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    eps: tl.tensor,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    NORM: tl.constexpr,
    KIND: tl.constexpr,
    INT8_LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
) -> None:
    """Do one token's heads; the grid is ``(tokens, blocks of heads)``."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    index = tl.arange(0, HALF)
    here = index < DIM // 2
    turning = head < Q_HEADS + KV_HEADS
    mask = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & here[None, :]
    source = heads_ptr + (token * (Q_HEADS + 2 * KV_HEADS) + head[:, None]) * DIM + index[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2, mask=mask, other=0.0).to(tl.float32)
    turned = turning[:, None] & here[None, :]
    if NORM:
        square = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / DIM
        factor = tl.where(turning, tl.rsqrt(square + eps), 1.0)[:, None]
        weight = norm_ptr + head[:, None] * DIM + index[None, :]
        first = first * factor * tl.load(weight, mask=turned, other=1.0).to(tl.float32)
        second = second * factor * tl.load(weight + DIM // 2, mask=turned, other=1.0).to(tl.float32)
    cos = tl.load(cos_ptr + token * (DIM // 2) + index, mask=here, other=1.0)
    sin = tl.load(sin_ptr + token * (DIM // 2) + index, mask=here, other=0.0)
    cos = tl.where(turning[:, None], cos[None, :], 1.0)
    sin = tl.where(turning[:, None], sin[None, :], 0.0)
    left = first * cos - second * sin
    right = second * cos + first * sin

    query = (head < Q_HEADS)[:, None] & here[None, :]
    tl.store(source, left.to(heads_ptr.dtype.element_ty), mask=query)
    tl.store(source + DIM // 2, right.to(heads_ptr.dtype.element_ty), mask=query)

    slot = tl.load(slots_ptr + token)
    page = (slot // PAGE).to(tl.int64)
    is_key = (head >= Q_HEADS) & turning & (slot >= 0)
    is_value = (head >= Q_HEADS + KV_HEADS) & (head < Q_HEADS + 2 * KV_HEADS) & (slot >= 0)
    key = (page * KV_HEADS + (head - Q_HEADS)) * PAGE + slot % PAGE
    keep = is_key[:, None] & here[None, :]
    put(
        left, right, k_ptr, k_scale_ptr, key, index, keep, is_key,
        DIM, KIND, INT8_LIMIT, SMALLEST, FP8_LIMIT,
    )  # fmt: skip
    keep = is_value[:, None] & here[None, :]
    put(
        left, right, v_ptr, v_scale_ptr, key - KV_HEADS * PAGE, index, keep, is_value,
        DIM, KIND, INT8_LIMIT, SMALLEST, FP8_LIMIT,
    )  # fmt: skip


@triton.jit
def store_kernel(
    source_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    target_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    source_token: tl.tensor,
    source_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    KIND: tl.constexpr,
    INT8_LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
) -> None:
    """Store one token's keys, or values, as they are; the grid is ``(tokens, blocks of heads)``."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    index = tl.arange(0, HALF)
    rows = head < KV_HEADS
    mask = rows[:, None] & (index < DIM // 2)[None, :]
    source = source_ptr + token * source_token + head[:, None] * source_head + index[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2, mask=mask, other=0.0).to(tl.float32)
    cell = ((slot // PAGE).to(tl.int64) * KV_HEADS + head) * PAGE + slot % PAGE
    put(
        first, second, target_ptr, scale_ptr, cell, index, mask, rows,
        DIM, KIND, INT8_LIMIT, SMALLEST, FP8_LIMIT,
    )  # fmt: skip


def rotate_store(
    heads: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    rotation: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    pages: LayerPages,
) -> None:
    """Norm and rotate queries and keys, the queries in place; store keys and values.

    Args:
        heads: query, key and value heads ``[T, query + 2 kv heads, head dim]``, contiguous.
        norm: weights ``[query + kv heads, head dim]`` of the norm over each head, or None.
        eps: of the norm.
        rotation: cosines and sines ``[T, head dim / 2]`` in fp32, contiguous.
        slots: ``page * page size + offset`` of each token, ``[T]`` int32; negative stores nothing.
        pages: where to.
    """
    _, kv_heads, page, dim = pages.keys.shape
    tokens, count = heads.shape[:2]
    block = min(HEADS, next_power(count))
    rotate_store_kernel[(tokens, -(-count // block))](
        heads,
        heads if norm is None else norm,
        *rotation,
        slots,
        pages.keys,
        pages.values,
        *_scales(pages),
        eps,
        Q_HEADS=count - 2 * kv_heads,
        KV_HEADS=kv_heads,
        PAGE=page,
        DIM=dim,
        HALF=next_power(dim // 2),
        BLOCK_H=block,
        NORM=norm is not None,
        num_warps=WARPS,
        **_rounding(pages),
    )


def store(k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, pages: LayerPages) -> None:
    """Store ``k, v [T, kv heads, head dim]`` as they are; their last dimension is contiguous."""
    _, kv_heads, page, dim = pages.keys.shape
    block = min(HEADS, next_power(kv_heads))
    sides = zip((k, v), (pages.keys, pages.values), _scales(pages), strict=True)
    for source, target, scales in sides:
        store_kernel[(len(source), -(-kv_heads // block))](
            source,
            slots,
            target,
            scales,
            source.stride(0),
            source.stride(1),
            KV_HEADS=kv_heads,
            PAGE=page,
            DIM=dim,
            HALF=next_power(dim // 2),
            BLOCK_H=block,
            num_warps=WARPS,
            **_rounding(pages),
        )


def _scales(pages: LayerPages) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where scales go; without any, pointers that are not followed."""
    if pages.key_scales is None or pages.value_scales is None:
        return pages.keys, pages.values
    return pages.key_scales, pages.value_scales


def _rounding(pages: LayerPages) -> dict[str, int | float]:
    kind = _SAME
    if pages.key_scales is not None:
        kind = _INT8
    elif pages.keys.dtype.itemsize == 1:
        kind = _FP8
    return {
        "KIND": kind,
        "INT8_LIMIT": INT8_MAX,
        "SMALLEST": SMALLEST_SCALE,
        "FP8_LIMIT": FP8_MAX,
    }
