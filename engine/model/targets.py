"""Where a checkpoint's tensors go: row by row, in another dtype, or rounded to fp8 on the way."""

from __future__ import annotations

from typing import Protocol

import torch

from agentrt.engine.model.fp8 import quantize

__all__ = ["Fp8Rows", "Repeated", "Rows", "Target"]


class Target(Protocol):
    """A place for one tensor of a checkpoint, which may come in several runs of rows."""

    @property
    def nbytes(self) -> int:
        """Return the bytes that it takes once it is filled."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where it is."""
        ...

    def takes(self, dtype: torch.dtype) -> bool:
        """Say whether rows of ``dtype`` are copied as they are: then they may come from the host.

        Otherwise they are to be on the target's device before they are put.
        """
        ...

    def put(self, start: int, rows: torch.Tensor) -> None:
        """Take the tensor's rows from ``start`` on. Nothing is waited for on a GPU."""
        ...


class Rows:
    """A tensor of the shape that the checkpoint has, in any dtype."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.nbytes = tensor.nbytes
        self.device = tensor.device

    def takes(self, dtype: torch.dtype) -> bool:
        """Say whether ``dtype`` is the tensor's own."""
        return dtype == self._tensor.dtype

    def put(self, start: int, rows: torch.Tensor) -> None:
        """Copy rows, converting the dtype."""
        self._tensor[start : start + rows.shape[0]].copy_(rows, non_blocking=True)


class Repeated:
    """A tensor that holds the checkpoint's many times, once in each of its rows."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.nbytes = tensor.nbytes
        self.device = tensor.device

    def takes(self, dtype: torch.dtype) -> bool:
        """Say no: one copy from the host is better than many."""
        return False

    def put(self, start: int, rows: torch.Tensor) -> None:
        """Copy numbers into every row."""
        self._tensor[:, start : start + rows.shape[0]].copy_(rows)


class Fp8Rows:
    """A weight ``[out, in]`` in fp8 with a scale for each output."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        self._weight = weight
        self._scales = scales
        self.nbytes = weight.nbytes + scales.nbytes
        self.device = weight.device

    def takes(self, dtype: torch.dtype) -> bool:
        """Say no: rows are rounded where they are to be."""
        return False

    def put(self, start: int, rows: torch.Tensor) -> None:
        """Round whole rows and keep them."""
        part = slice(start, start + rows.shape[0])
        # Copied as bytes: that works wherever torch can make fp8 at all.
        weight, scales = quantize(rows)
        self._weight[part].view(torch.uint8).copy_(weight.view(torch.uint8))
        self._scales[part].copy_(scales)
