"""What a batch looks like to attention, and what an attention implementation must do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

__all__ = [
    "Attention",
    "AttentionStep",
    "BatchLayout",
    "DecodeBuffers",
    "OperandStep",
    "RawAttentionStep",
    "SliceLayout",
    "StaticAttention",
]


@dataclass(slots=True)
class SliceLayout:
    """One sequence's part of a batch: its tokens at positions ``[start, start + count)``.

    ``pages`` is the sequence's page table: position ``p`` lives in ``pages[p // page_size]`` at
    offset ``p % page_size``. It covers at least ``start + count`` tokens; the rest is not read.
    """

    # Not frozen: a step makes hundreds, and a frozen one takes four times as long to make.

    start: int
    count: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The slices of one step, in the order in which their tokens stand in the batch."""

    slices: tuple[SliceLayout, ...]

    @property
    def tokens(self) -> int:
        """Return how many tokens the batch has: the first dimension of q, k and v."""
        return sum(piece.count for piece in self.slices)


class AttentionStep(Protocol):
    """Attention for one batch: prepared once, then called once a layer."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store ``k`` and ``v`` in the slices' pages, then attend causally over each sequence.

        Args:
            layer: which layer's pages to use.
            q: queries ``[T, query heads, head dim]``, rotated.
            k: keys ``[T, kv heads, head dim]``, rotated.
            v: values ``[T, kv heads, head dim]``.

        Returns:
            ``[T, query heads, head dim]`` in the dtype of ``q``. A sequence's rows do not depend
            (beyond rounding) on the other slices, nor on how its earlier tokens were cut.
        """
        ...


@runtime_checkable
class RawAttentionStep(AttentionStep, Protocol):
    """A step that also norms and rotates: all that is between two linear layers in one call."""

    def attend_raw(
        self,
        layer: int,
        heads: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Norm and rotate queries and keys, store keys and values, attend.

        Args:
            layer: which layer's pages to use.
            heads: query, key and value heads as projected, ``[T, query + 2 kv heads, head dim]``,
                contiguous; overwritten.
            norm: weights ``[query + kv heads, head dim]`` of the norm over each head, or None.
            eps: of the norm.
            rotation: cosines and sines ``[T, head dim / 2]`` in fp32.

        Returns:
            ``[T, query heads, head dim]``, as :meth:`attend`.
        """
        ...


@runtime_checkable
class OperandStep(RawAttentionStep, Protocol):
    """A step whose layers all run in one native call."""

    def operands(self) -> tuple[object, ...]:
        """Return what the native ``Layers.run`` takes of a step, after the rotation."""
        ...


class Attention(Protocol):
    """Owns the pages of keys and values, and plans steps over them."""

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        ...

    @property
    def page_size(self) -> int:
        """Return how many tokens a page holds."""
        ...

    @property
    def page_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all that a page is made of: contiguous tensors ``[layers, 2, pages, ...]``."""
        ...

    def plan(self, layout: BatchLayout) -> AttentionStep:
        """Prepare one step. The step is valid until the next call of ``plan``.

        Raises:
            InternalError: a slice is empty, or its page table is too short or out of range.
        """
        ...


@dataclass(frozen=True, slots=True)
class DecodeBuffers:
    """Where a decode step finds its sequences: device tensors that keep their places.

    A step over them can be captured once and run again after they were overwritten. One row is one
    sequence with one new token; padding has length 0 and stores nothing, and its result is zero.
    """

    lengths: torch.Tensor
    """``[B]`` int32: tokens of each sequence, the new one included."""
    pages: torch.Tensor
    """``[B, most pages of a sequence]`` int32: page tables; what is past a length is not read."""


@runtime_checkable
class StaticAttention(Attention, Protocol):
    """Attention whose decode steps read all that changes from buffers, when they run."""

    def plan_decode(self, buffers: DecodeBuffers) -> AttentionStep:
        """Prepare steps over ``buffers``; valid for as long as their tensors and the pages are.

        What it launches depends on the shapes of the buffers alone, and waits for no result. A
        run of the step calls layer 0 first: there the buffers are read for all layers.
        """
        ...
