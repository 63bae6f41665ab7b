"""Tensors from mapped files to a device, in runs of rows through a ring of pinned buffers.

    file ─ read ahead by the kernel ─► page cache ─ copied ─► pinned buffer ─ bus ─► target

The bus copies one buffer while the host fills the next and the disk reads what comes after. Memory
beyond the targets is the ring, on host and device, whatever the size of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from agentrt.engine.model.targets import Target

__all__ = ["CudaCopier", "DeviceCopier", "HostCopier", "Run", "Wanted", "copy_runs", "plan_runs"]

BUFFER_BYTES = 64 << 20
"""Large enough that a copy's start costs nothing: at 50 GB/s it takes 1.3 ms."""
BUFFERS = 3
"""One that the bus empties, one that the host fills, and one that evens out their times."""
AHEAD_BYTES = 256 << 20
"""Of the file that the kernel is asked to read before they are needed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor of a checkpoint, or a part of it, and where that goes.

    Args:
        file: where it is.
        name: its name there.
        offset: of its first byte in the file.
        shape: as the file has it.
        dtype: as the file has it.
        target: takes the rows, counted from the first of the part.
        rows: the part's rows ``[start, stop)``; None is all of them.
        columns: likewise of the second dimension.
    """

    file: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    target: Target
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    @property
    def extent(self) -> tuple[int, int]:
        """The part's rows ``[start, stop)``."""
        return self.rows or (0, self.shape[0])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """What a row of the part is."""
        if self.columns is None:
            return self.shape[1:]
        return (self.columns[1] - self.columns[0], *self.shape[2:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the part."""
        return self.dtype.itemsize * math.prod(self.row_shape)


@dataclass(frozen=True, slots=True)
class Run:
    """Rows ``[start, stop)`` of the file's tensor: what goes through a buffer at once."""

    tensor: Wanted
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """What goes through the buffer."""
        return (self.stop - self.start, *self.tensor.row_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return (self.stop - self.start) * self.tensor.row_bytes

    @property
    def place(self) -> int:
        """Its first row, counted from the first of the part."""
        return self.start - self.tensor.extent[0]

    @property
    def offset(self) -> int:
        """Of the first byte of its rows in the file."""
        return self.tensor.offset + self.start * self._whole_row

    @property
    def span(self) -> int:
        """Bytes of its rows in the file."""
        return (self.stop - self.start) * self._whole_row

    @property
    def _whole_row(self) -> int:
        return self.tensor.dtype.itemsize * math.prod(self.tensor.shape[1:])


def plan_runs(tensors: Iterable[Wanted], limit: int = BUFFER_BYTES) -> Iterator[Run]:
    """Cut tensors into runs of at most ``limit`` bytes, but of at least one row, file by file.

    Each file is read from its beginning to its end.
    """
    for tensor in sorted(tensors, key=lambda one: (one.file, one.offset)):
        first, last = tensor.extent
        most = max(1, limit // max(1, tensor.row_bytes))
        for start in range(first, last, most):
            yield Run(tensor, start, min(last, start + most))


class DeviceCopier(Protocol):
    """A ring of host buffers, each of which is copied to the device while others are filled."""

    def fill(self, run: Run, rows: torch.Tensor) -> None:
        """Take rows, waiting until the oldest buffer is free; their copy may go on after this."""
        ...

    def finish(self) -> None:
        """Wait until everything is in its target."""
        ...


class HostCopier:
    """No device: rows go from the mapped file straight into their targets."""

    def fill(self, run: Run, rows: torch.Tensor) -> None:
        """Copy rows."""
        run.tensor.target.put(run.place, rows)

    def finish(self) -> None:
        """Do nothing: nothing is under way."""


class CudaCopier:
    """Pinned buffers, and copies on a stream of their own.

    Args:
        device: a CUDA device.
        size: bytes of the largest run.
        buffers: in the ring.
    """

    def __init__(self, device: torch.device, size: int, buffers: int = BUFFERS) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # What was allocated and zeroed for the targets must be done before this stream writes.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(buffers)]
        self._raw = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(buffers)]
        events = range(buffers)
        self._free = [torch.cuda.Event() for _ in events]  # type: ignore[no-untyped-call]
        self._size = size
        self._next = 0

    def fill(self, run: Run, rows: torch.Tensor) -> None:
        """Copy rows to the next buffer, and begin its copy to the device."""
        place, self._next = self._next, (self._next + 1) % len(self._host)
        self._free[place].synchronize()
        held = self._host[place][: run.nbytes].view(run.tensor.dtype).view(run.shape)
        held.copy_(rows)
        target = run.tensor.target
        with torch.cuda.stream(self._stream):
            if not target.takes(run.tensor.dtype):
                held = self._on_device(place, run.nbytes, held)
            target.put(run.place, held)
            self._free[place].record(self._stream)

    def _on_device(self, place: int, count: int, held: torch.Tensor) -> torch.Tensor:
        if not len(self._raw[place]):
            raw = torch.empty(self._size, dtype=torch.uint8, device=self._raw[place].device)
            self._raw[place] = raw
        there = self._raw[place][:count].view(held.dtype).view(held.shape)
        return there.copy_(held, non_blocking=True)

    def finish(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()


def copier_for(tensors: Sequence[Wanted], runs: Sequence[Run]) -> DeviceCopier:
    """Return what copies ``runs``: all targets are on one device."""
    device = tensors[0].target.device
    if device.type != "cuda":
        return HostCopier()
    return CudaCopier(device, max(run.nbytes for run in runs))


def copy_runs(runs: Sequence[Run], copier: DeviceCopier, ahead: int = AHEAD_BYTES) -> Iterator[Run]:
    """Copy runs to their targets in order; yields each once its copy has begun.

    Raises:
        OSError: a file cannot be read.
    """
    sources: dict[Path, Any] = {}
    asked = _Ahead(runs, ahead)
    for place, run in enumerate(runs):
        file = run.tensor.file
        if file not in sources:
            sources.clear()  # runs are in the order of files: the last one is read
            sources[file] = safe_open(str(file), framework="pt")
        asked.upto(place)
        copier.fill(run, _rows(sources[file], run))
        yield run
    copier.finish()


def _rows(source: Any, run: Run) -> torch.Tensor:
    """Return rows of a tensor of an open file, as they are mapped."""
    rows: torch.Tensor
    name, columns = run.tensor.name, run.tensor.columns
    if columns is not None:
        rows = source.get_slice(name)[run.start : run.stop, columns[0] : columns[1]]
    elif run.stop - run.start < run.tensor.shape[0]:
        rows = source.get_slice(name)[run.start : run.stop]
    else:
        rows = source.get_tensor(name)
    return rows


class _Ahead:
    """Asks the kernel to read what comes next, up to some bytes ahead."""

    def __init__(self, runs: Sequence[Run], most: int) -> None:
        self._runs = runs
        self._most = most
        self._next = 0
        self._bytes = 0

    def upto(self, place: int) -> None:
        """Ask for runs after ``place`` until enough is asked for."""
        if self._next <= place:
            self._next, self._bytes = place, 0
        else:
            self._bytes -= self._runs[place].span
        while self._next < len(self._runs) and self._bytes < self._most:
            run = self._runs[self._next]
            _advise(run.tensor.file, run.offset, run.span)
            self._bytes += run.span
            self._next += 1


def _advise(file: Path, offset: int, count: int) -> None:
    """Ask for a part of a file; returns before it is read."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, offset, count, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)
