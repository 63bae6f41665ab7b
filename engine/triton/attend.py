"""Attention over paged keys and values: one kernel for every kind of slice, and the merge of parts.

The work is a list of items. An item is a tile of queries (some tokens of one sequence, with all
query heads of one kv head folded in, so that keys and values are read once for all of them) and a
range of keys. Where a tile's keys are split over several items, each writes a part, and
``merge_kernel`` combines the parts by their log-sum-exp. Lists come from ``extend.py`` (made on the
host) or from ``decode.py`` (made on the device).

All arithmetic is fp32 in the base-2 domain; only the operands of matrix products are narrow. Source
of the online softmax: Milakov and Gimelshein, arXiv 1805.02867; of merging parts by log-sum-exp:
Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentrt.engine.triton.configs import next_power
from agentrt.engine.triton.device import dot_dtype
from agentrt.engine.triton.work import LayerPages, Work

__all__ = ["attend", "attend_kernel", "merge_kernel"]

LOG2_E = 1.4426950408889634
MERGED = 32
"""Parts that a merge reads at once."""


@triton.jit
def attend_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    part_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    items_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    PHASES: tl.constexpr,
    SCALED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Attend one item for one kv head; the grid is ``(items, kv heads)``.

    With two ``PHASES`` the first runs over keys that every query of the tile sees, without a mask,
    and the second over the causal diagonal. With one, all queries see all keys: a decode.
    """
    item = items_ptr + tl.program_id(0) * 8
    kv_head = tl.program_id(1)
    tokens = tl.load(item + 1)
    if tokens == 0:
        return
    row = tl.load(item)
    position = tl.load(item + 2)
    table_ptr = pages_ptr + tl.load(item + 3)
    low = tl.load(item + 4)
    high = tl.load(item + 5)
    part = tl.load(item + 6)

    m_index = tl.arange(0, BLOCK_M)
    d_index = tl.arange(0, BLOCK_D)
    token = m_index // GROUP
    head = kv_head * GROUP + m_index % GROUP
    # Rows of padding behave as some token of the tile, so that no row is without a key for it.
    real = m_index < tokens * GROUP
    seen_to = position + token
    wide = d_index < DIM
    q_rows = (row + token).to(tl.int64) * q_token + head * q_head
    q = tl.load(
        q_ptr + q_rows[:, None] + d_index[None, :], mask=real[:, None] & wide[None, :], other=0.0
    ).to(DOT)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    everyone = tl.maximum(tl.minimum(position + 1, high) - low, 0) // BLOCK_N * BLOCK_N
    for phase in tl.static_range(PHASES):
        if PHASES == 1:
            begin, end = low, high
        elif phase == 0:
            begin, end = low, low + everyone
        else:
            begin, end = low + everyone, high
        key = begin + tl.arange(0, BLOCK_N)
        page = tl.load(table_ptr + key // PAGE, mask=key < high, other=0)
        for start in tl.range(begin, end, BLOCK_N):
            key = start + tl.arange(0, BLOCK_N)
            inside = key < high
            # The next block's pages are read one step ahead: were they read in the step that needs
            # them, the compiler would keep a single block of keys on its way.
            after = key + BLOCK_N
            next_page = tl.load(table_ptr + after // PAGE, mask=after < high, other=0)
            slot = (page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + key % PAGE
            cell = slot[:, None] * DIM + d_index[None, :]
            # What a page holds past its sequence's end may be NaN: it is not read at all.
            if phase == PHASES - 1:
                shown = inside[:, None] & wide[None, :]
                k = tl.load(k_ptr + cell, mask=shown, other=0.0)
                v = tl.load(v_ptr + cell, mask=shown, other=0.0)
            elif BLOCK_D != DIM:
                k = tl.load(k_ptr + cell, mask=wide[None, :], other=0.0)
                v = tl.load(v_ptr + cell, mask=wide[None, :], other=0.0)
            else:
                k = tl.load(k_ptr + cell)
                v = tl.load(v_ptr + cell)
            scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee") * scale
            if SCALED:
                k_scale = tl.load(k_scale_ptr + slot, mask=inside, other=0.0)
                v_scale = tl.load(v_scale_ptr + slot, mask=inside, other=0.0)
                scores = scores * k_scale[None, :]
            if phase == PHASES - 1:
                visible = inside[None, :]
                if PHASES == 2:
                    visible = visible & (key[None, :] <= seen_to[:, None])
                scores = tl.where(visible, scores, float("-inf"))
            if WINDOW > 0:
                scores = tl.where(key[None, :] > seen_to[:, None] - WINDOW, scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            # A row that saw nothing yet: minus infinity less itself would be NaN.
            pivot = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(scores - pivot[:, None])
            decay = tl.exp2(best - pivot)
            total = total * decay + tl.sum(weight, 1)
            if SCALED:
                weight = weight * v_scale[None, :]
            acc = tl.dot(weight.to(DOT), v.to(DOT), acc * decay[:, None], input_precision="ieee")
            best = higher
            page = next_page

    total = tl.where(total == 0.0, 1.0, total)
    result = acc / total[:, None]
    keep = real[:, None] & wide[None, :]
    if part < 0:
        # All heads of a token are next to each other in the output.
        place = ((row + token).to(tl.int64) * (KV_HEADS * GROUP) + head) * DIM
        tl.store(
            out_ptr + place[:, None] + d_index[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=keep,
        )
    else:
        place = (part.to(tl.int64) * KV_HEADS + kv_head) * ROWS + m_index
        tl.store(part_ptr + place[:, None] * DIM + d_index[None, :], result, mask=keep)
        tl.store(lse_ptr + place, best + tl.log2(total), mask=real)  # minus infinity for nothing


@triton.jit
def merge_kernel(
    out_ptr: tl.tensor,
    part_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    merges_ptr: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Combine the parts of one row of a tile; the grid is ``(merges, kv heads, rows)``.

    A row without parts becomes zero: what padding holds is then no matter of chance.
    """
    merge = merges_ptr + tl.program_id(0) * 4
    kv_head = tl.program_id(1)
    index = tl.program_id(2)
    tokens = tl.load(merge + 1)
    first = tl.load(merge + 2)
    parts = tl.load(merge + 3)
    if (parts == 1) | (index >= tokens * GROUP):
        return
    row = tl.load(merge) + index // GROUP
    head = kv_head * GROUP + index % GROUP
    d_index = tl.arange(0, BLOCK_D)
    wide = d_index < DIM

    best = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, parts, BLOCK_P):
        number = start + tl.arange(0, BLOCK_P)
        inside = number < parts
        place = ((first + number).to(tl.int64) * KV_HEADS + kv_head) * ROWS + index
        lse = tl.load(lse_ptr + place, mask=inside, other=float("-inf"))
        values = tl.load(
            part_ptr + place[:, None] * DIM + d_index[None, :],
            mask=inside[:, None] & wide[None, :],
            other=0.0,
        )
        higher = tl.maximum(best, tl.max(lse, 0))
        # Parts of the diagonal may hide all their keys from a row, but never all of its parts.
        pivot = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(lse - pivot)
        decay = tl.exp2(best - pivot)
        total = total * decay + tl.sum(weight, 0)
        acc = acc * decay + tl.sum(weight[:, None] * values, 0)
        best = higher
    place = (row.to(tl.int64) * (KV_HEADS * GROUP) + head) * DIM
    result = (acc / tl.where(total == 0.0, 1.0, total)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place + d_index, result, mask=wide)


def attend(
    pages: LayerPages, table: torch.Tensor, work: Work, q: torch.Tensor, out: torch.Tensor
) -> None:
    """Compute the rows of ``out`` that ``work`` names.

    Args:
        pages: the layer's.
        table: page ids of all sequences, int32; items say where each begins.
        work: what to compute.
        q: queries ``[T, query heads, head dim]``; the last dimension is contiguous.
        out: ``[T, query heads, head dim]``, contiguous, in the dtype of ``q``.
    """
    if not len(work.items):
        return
    _, kv_heads, page, dim = pages.keys.shape
    tile, config = work.tile, work.tile.config
    scaled = pages.key_scales is not None
    common = {
        "GROUP": tile.group,
        "KV_HEADS": kv_heads,
        "DIM": dim,
        "BLOCK_D": max(16, next_power(dim)),
        "ROWS": tile.rows,
    }
    attend_kernel[(len(work.items), kv_heads)](
        q,
        pages.keys,
        pages.values,
        pages.key_scales if scaled else pages.keys,  # without scales it is not followed
        pages.value_scales if scaled else pages.values,
        out,
        work.parts,
        work.lses,
        work.items,
        table,
        q.stride(0),
        q.stride(1),
        dim**-0.5 * LOG2_E,
        PAGE=page,
        BLOCK_M=config.rows,
        BLOCK_N=config.keys,
        WINDOW=tile.window if tile.causal else 0,
        PHASES=2 if tile.causal else 1,
        SCALED=scaled,
        DOT=dot_dtype(q.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
        **common,
    )
    if len(work.merges):
        merge_kernel[(len(work.merges), kv_heads, tile.rows)](
            out, work.parts, work.lses, work.merges, BLOCK_P=MERGED, num_warps=4, **common
        )
