"""Core: what the parts of a step take of a device's memory, estimated from shapes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrt.engine.model.config import ModelShape

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "activation_bytes",
    "graph_bytes",
    "workspace_bytes",
]

KIB, MIB, GIB = 2**10, 2**20, 2**30

LOGIT_COPIES = 3
"""fp32: the logits, what temperature and penalties make of them, and their probabilities."""
SPLITS = 16
"""Parts of a sequence that attention computes at once, at most: each leaves a partial result."""
GATHERED = 512
"""Tokens of each sequence that attention in plain torch copies at once, on a CPU."""
NODES_PER_LAYER, OTHER_NODES, NODE_BYTES = 12, 8, 16 * KIB
"""Kernels of a captured step, and what the driver keeps on the device for each. A guess: at start
on a GPU the log says what was really taken, beside what was planned."""
MATMUL_WORKSPACE = 32 * MIB
"""What cuBLAS takes for a stream on Hopper, as PyTorch sets it."""
WIDENED = 64 * MIB
"""fp8 weights are widened in pieces of so much at most, where there are many rows."""


def activation_bytes(shape: ModelShape, rows: int, sampled: int, dtype: str) -> int:
    """Return what a step of ``rows`` tokens takes, ``sampled`` of them with logits.

    A token has its residual and its normed copy all the time, and beside them either queries, keys
    and values, their rotated copy and attention's result, or both halves of the MLP and their
    product: ``2 h + max(2 (q + 2 kv) + q, 3 f)`` numbers. A foreign model's widths are not known
    here: ``h = q`` and ``f = 4 h`` are taken.
    """
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    h = getattr(shape, "hidden_size", q)
    f = getattr(shape, "intermediate_size", 4 * h)
    numbers = 2 * h + max(2 * (q + 2 * kv) + q, 3 * f)
    logits = LOGIT_COPIES * sampled * shape.vocab_size * 4
    return rows * numbers * _itemsize(dtype) + logits


def graph_bytes(shape: ModelShape, graphs: Sequence[int], dtype: str) -> int:
    """Return what captured decode steps take: they share the memory of the largest."""
    if not graphs:
        return 0
    nodes = len(graphs) * (NODES_PER_LAYER * shape.num_layers + OTHER_NODES)
    largest = max(graphs)
    return activation_bytes(shape, largest, largest, dtype) + nodes * NODE_BYTES


def workspace_bytes(
    shape: ModelShape, max_seqs: int, dtype: str, *, widened: bool, gpu: bool
) -> int:
    """Return what attention and matrix products take beside activations.

    Args:
        shape: the model's.
        max_seqs: sequences of a step at most.
        dtype: of activations.
        widened: whether fp8 weights are widened where there are many rows.
        gpu: whether the device is one.
    """
    pieces = WIDENED if widened else 0
    if not gpu:
        gathered = 2 * max_seqs * GATHERED * shape.num_kv_heads * shape.head_dim
        return gathered * _itemsize(dtype) + pieces
    partial = max_seqs * shape.num_heads * SPLITS * (shape.head_dim + 2) * 4
    return partial + MATMUL_WORKSPACE + pieces


def _itemsize(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
