"""What a decode step is told, in one buffer and one copy.

On the host a step's rows are written as numpy columns of one int32 buffer, pinned where the device
is CUDA; one copy that nobody waits for brings it to the device, where a graph reads its columns at
places that never change. There are two host buffers, so that the next step can be written while the
device may still be reading the last one.

    number, share   fp64   [rows]         of the draw; mass that top-p may cut
    temperature, min_p     fp32 [rows]
    token, position, length, slot, top_k, forced    int32 [rows]
    used            int32  [1]            columns of each page table that are sent
    pages           int32  [rows, used]   page tables, one after another
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrt.engine.attention.base import DecodeBuffers
from agentrt.engine.gpu.events import Mark
from agentrt.errors import InternalError

__all__ = ["DeviceRows", "HostRows", "Metadata"]

_WIDE = ("number", "share")
_REAL = ("temperature", "min_p")
_WHOLE = ("token", "position", "length", "slot", "top_k", "forced")
_HEAD = 2 * len(_WIDE) + len(_REAL) + len(_WHOLE)
"""int32 words a row before the page tables."""
_USED = 4
"""Words for ``used``: so many that page tables begin at a multiple of 16 bytes, as lengths do."""


def _places(rows: int) -> dict[str, slice]:
    """Return where each column of a bucket of ``rows`` lies, in words."""
    places: dict[str, slice] = {}
    begin = 0
    for name in (*_WIDE, *_REAL, *_WHOLE):
        size = rows * (2 if name in _WIDE else 1)
        places[name] = slice(begin, begin + size)
        begin += size
    places["used"] = slice(begin, begin + 1)
    return places


def _words(rows: int, width: int) -> int:
    return rows * (_HEAD + width) + _USED


@dataclass(frozen=True, slots=True)
class HostRows:
    """The columns of one step on the host, ``[rows]`` each, and its page tables."""

    rows: int
    words: NDArray[np.int32]
    number: NDArray[np.float64]
    share: NDArray[np.float64]
    temperature: NDArray[np.float32]
    min_p: NDArray[np.float32]
    token: NDArray[np.int32]
    position: NDArray[np.int32]
    length: NDArray[np.int32]
    slot: NDArray[np.int32]
    top_k: NDArray[np.int32]
    forced: NDArray[np.int32]

    def tables(self, used: int) -> NDArray[np.int32]:
        """Return the page tables ``[rows, used]`` to be written; ``used`` is what is sent of each.

        What is past a sequence's own pages may hold anything.
        """
        self.words[self.rows * _HEAD] = used
        begin = self.rows * _HEAD + _USED
        return self.words[begin : begin + self.rows * used].reshape(self.rows, used)


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """The same columns on the device; they keep their places for as long as the buffer lives."""

    number: Tensor
    share: Tensor
    temperature: Tensor
    min_p: Tensor
    token: Tensor
    position: Tensor
    slot: Tensor
    top_k: Tensor
    forced: Tensor
    used: Tensor
    packed: Tensor | None
    """int32: the page tables as they were sent; None if attention reads them as they are."""
    buffers: DecodeBuffers
    """What attention reads."""

    def spread(self) -> None:
        """Lay the page tables out as attention reads them; the graph's first work."""
        if self.packed is None:
            return
        pages = self.buffers.pages
        column = torch.arange(pages.shape[1], device=pages.device)
        column = torch.minimum(column, self.used - 1).clamp_(min=0)
        first = torch.arange(pages.shape[0], device=pages.device)[:, None] * self.used
        torch.index_select(self.packed, 0, (first + column).flatten(), out=pages.view(-1))


SENT_WHOLE = 1 << 14
"""Words of page tables that are sent with all their columns: sending them is quicker than work."""


class Metadata:
    """The buffers of all steps of at most ``most`` rows with page tables of at most ``width``."""

    def __init__(
        self, most: int, width: int, device: torch.device, *, whole: int = SENT_WHOLE
    ) -> None:
        self.width = width
        self._whole = whole
        pinned = device.type == "cuda"
        words = _words(most, width)
        self._device = torch.zeros(words, dtype=torch.int32, device=device)
        self._pages = torch.zeros(most, width, dtype=torch.int32, device=device)
        self._host = [torch.zeros(words, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._sent = (Mark(device), Mark(device))
        self._next = 0

    def write(self, rows: int) -> HostRows:
        """Return the columns of the next step, all zero, to be filled and sent.

        Waits only if the copy of the step before the last one is not over yet.
        """
        self._sent[self._next].wait()
        words: NDArray[np.int32] = self._host[self._next].numpy()
        words[: rows * _HEAD] = 0
        places = _places(rows)
        columns: dict[str, NDArray[Any]] = {name: words[places[name]] for name in _WHOLE}
        columns |= {name: words[places[name]].view(np.float64) for name in _WIDE}
        columns |= {name: words[places[name]].view(np.float32) for name in _REAL}
        return HostRows(rows, words, **columns)

    def clear(self) -> None:
        """Have the device see steps of padding only, whatever their bucket."""
        self._device.zero_()
        self._pages.zero_()

    def columns(self, rows: int, used: int) -> int:
        """Return how many columns of page tables are sent if the longest has ``used`` pages."""
        return self.width if rows * self.width <= self._whole else used

    def send(self, host: HostRows, used: int) -> None:
        """Copy what was written to the device, behind what was launched before; wait for nothing.

        ``used`` is what ``tables`` was called with.
        """
        buffer = self._host[self._next]
        if host.words.ctypes.data != buffer.data_ptr():
            raise InternalError("Columns were sent that are not the ones being written.")
        words = _words(host.rows, used)
        self._device[:words].copy_(buffer[:words], non_blocking=True)
        self._sent[self._next].set()
        self._next = 1 - self._next

    def rows(self, rows: int) -> DeviceRows:
        """Return the columns of a bucket on the device."""
        words = self._device
        columns = {name: words[place] for name, place in _places(rows).items()}
        for name in _WIDE:
            columns[name] = columns[name].view(torch.float64)
        for name in _REAL:
            columns[name] = columns[name].view(torch.float32)
        sent = words[rows * _HEAD + _USED : _words(rows, self.width)]
        whole = self.columns(rows, 0) == self.width
        pages = sent.view(rows, self.width) if whole else self._pages[:rows]
        buffers = DecodeBuffers(columns.pop("length"), pages)
        return DeviceRows(**columns, packed=None if whole else sent, buffers=buffers)
