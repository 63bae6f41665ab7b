"""The work list of a decode step, made on the device from lengths that only the device knows.

A captured step cannot ask the host how to split its sequences. So its grid is as large as any list
can be, and one small launch for each step writes the list: the same rule as ``plan_work`` of
``engine/triton/extend.py``, with a program for each sequence.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentrt.engine.triton.configs import next_power

__all__ = ["plan_decode", "plan_kernel"]


@triton.jit(do_not_specialize=["batch", "width"])
def plan_kernel(
    lengths_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    items_ptr: tl.tensor,
    merges_ptr: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    EXTRA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """Write one sequence's items, its merge, and the slot of its newest token."""
    mine = tl.program_id(0)
    index = tl.arange(0, BLOCK_B)
    lengths = tl.load(lengths_ptr + index, mask=index < batch, other=0)
    visible = lengths
    if WINDOW > 0:
        visible = tl.minimum(lengths, WINDOW)
    share = (tl.sum(visible, 0) + EXTRA - 1) // EXTRA
    chunk = tl.maximum((share + BLOCK_N - 1) // BLOCK_N, 1) * BLOCK_N
    counts = (visible + chunk - 1) // chunk
    first = tl.sum(tl.where(index < mine, counts, 0), 0)
    count = tl.sum(tl.where(index == mine, counts, 0), 0)
    length = tl.sum(tl.where(index == mine, lengths, 0), 0)
    oldest = length - tl.sum(tl.where(index == mine, visible, 0), 0)

    number = tl.arange(0, BLOCK_W)
    own = number < count
    slot = first + number
    item = items_ptr + slot * 8
    low = oldest + number * chunk
    nothing = tl.zeros([BLOCK_W], tl.int32)
    tl.store(item, nothing + mine, mask=own)
    tl.store(item + 1, nothing + 1, mask=own)
    tl.store(item + 2, nothing + (length - 1), mask=own)
    tl.store(item + 3, nothing + mine * width, mask=own)
    tl.store(item + 4, low, mask=own)
    tl.store(item + 5, tl.minimum(low + chunk, length), mask=own)
    tl.store(item + 6, tl.where(count > 1, slot, -1), mask=own)
    if mine == batch - 1:  # what is behind the last item may be left from an earlier step
        unused = (number >= first + count) & (number < batch + EXTRA)
        tl.store(items_ptr + number * 8 + 1, nothing, mask=unused)

    merge = merges_ptr + mine * 4
    tl.store(merge, mine)
    tl.store(merge + 1, 1)
    tl.store(merge + 2, first)
    tl.store(merge + 3, count)

    newest = tl.maximum(length - 1, 0)
    page = tl.load(pages_ptr + mine * width + newest // PAGE, mask=length > 0, other=0)
    tl.store(slots_ptr + mine, tl.where(length > 0, page * PAGE + newest % PAGE, -1))


def plan_decode(
    lengths: torch.Tensor,
    pages: torch.Tensor,
    slots: torch.Tensor,
    items: torch.Tensor,
    merges: torch.Tensor,
    *,
    extra: int,
    block: int,
    page_size: int,
    window: int,
) -> None:
    """Write the work list of one new token for each sequence; all tensors are int32.

    Args:
        lengths: ``[B]``, the new tokens included; 0 for padding.
        pages: ``[B, width]``.
        slots: ``[B]``: receives where each new token goes, -1 for padding.
        items: ``[B + extra, 8]``.
        merges: ``[B, 4]``.
        extra: from ``extra_parts``.
        block: keys that are computed at once.
        page_size: tokens of a page.
        window: how many tokens back a token sees, itself included; 0 for all.
    """
    batch = len(lengths)
    plan_kernel[(batch,)](
        lengths,
        pages,
        slots,
        items,
        merges,
        batch,
        pages.stride(0),
        EXTRA=extra,
        BLOCK_N=block,
        PAGE=page_size,
        WINDOW=window,
        BLOCK_B=next_power(batch),
        BLOCK_W=next_power(batch + extra),
        num_warps=4,
    )
