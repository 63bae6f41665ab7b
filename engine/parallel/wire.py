"""What rank 0 and the others tell each other: framed messages over a socket, and their contents."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.errors import InternalError

__all__ = ["Channel", "Step", "pack_step", "unpack_step"]

_HEAD = struct.Struct("<cI")
"""Of a message: its kind, and the bytes that follow."""
_CHUNK = 1 << 20
_Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Step:
    """A batch to compute. Tokens, positions and rows come by a broadcast between the devices."""

    layout: BatchLayout
    rows: int
    """How many rows logits are asked of."""


def pack_step(step: Step) -> bytes:
    """Return a step as int32: rows, slices; start, count, pages of each; then all page tables."""
    slices = step.layout.slices
    tables = [np.asarray(piece.pages, dtype=np.int32) for piece in slices]
    head = [step.rows, len(slices)]
    for piece, table in zip(slices, tables, strict=True):
        head += (piece.start, piece.count, len(table))
    return b"".join([np.array(head, np.int32).tobytes(), *(table.tobytes() for table in tables)])


def unpack_step(data: bytes) -> Step:
    """Return what :func:`pack_step` packed.

    Raises:
        InternalError: it did not pack this.
    """
    ints: _Ints = np.frombuffer(data, np.int32)
    rows, count = (int(each) for each in ints[:2])
    heads = ints[2 : 2 + 3 * count].reshape(count, 3)
    first = 2 + 3 * count
    if len(ints) != first + int(heads[:, 2].sum()):
        raise InternalError(f"A step of {count} slices came in {len(ints)} numbers.")
    slices: list[SliceLayout] = []
    for start, tokens, pages in heads.tolist():
        slices.append(SliceLayout(start, tokens, _table(ints[first : first + pages])))
        first += pages
    return Step(BatchLayout(tuple(slices)), rows)


def _table(ints: _Ints) -> Sequence[int]:
    table: list[int] = ints.tolist()
    return table


class Channel:
    """Messages over one end of a socket pair: a kind of one letter, and bytes.

    Args:
        end: the socket; closed with this.
        seconds: how long a message may take that the other side does not read; None: for ever.
    """

    def __init__(self, end: socket.socket, seconds: float | None = None) -> None:
        self._end = end
        end.settimeout(seconds)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on."""
        return self._end.fileno()

    def send(self, kind: str, data: bytes = b"") -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone, or did not read in time (``TimeoutError``).
        """
        self._end.sendall(_HEAD.pack(kind.encode(), len(data)) + data)

    def tell(self, kind: str, about: Mapping[str, Any]) -> None:
        """Send a message with a JSON object."""
        self.send(kind, json.dumps(about).encode())

    def receive(self) -> tuple[str, bytes] | None:
        """Wait for a message; None once the other side is gone."""
        head = self._read(_HEAD.size)
        if head is None:
            return None
        kind, size = _HEAD.unpack(head)
        data = self._read(size)
        return None if data is None else (kind.decode(), data)

    def _read(self, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size:
            try:
                part = self._end.recv(min(size, _CHUNK))
            except ConnectionError:
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._end.close()
