"""Copying one group of pages: within host memory, or between a CUDA device and pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from agentrt.engine.tiers.groups import CopyGroup

__all__ = ["Copier", "CudaCopier", "MemoryCopier", "raw"]


class Copier(Protocol):
    """Copies one group; ``mark`` is taken where a transfer is planned and handed to its copies."""

    straight: bool

    def mark(self) -> Any: ...
    def store(self, group: CopyGroup) -> None: ...
    def load(self, group: CopyGroup) -> None: ...
    def begin(self, mark: Any) -> None: ...
    def finish(self) -> None: ...


class MemoryCopier(Copier):
    """Copies within host memory, through numpy: no parallel loop, and no lock while it copies.

    torch would copy in parallel with threads of its own, beside those that run the step.
    """

    straight = True

    def __init__(self, pool: Sequence[torch.Tensor], host: Sequence[torch.Tensor]) -> None:
        self._parts = [
            (raw(part).flatten(0, 1).numpy(), raw(other).flatten(1, 2).numpy())
            for part, other in zip(pool, host, strict=True)
        ]

    def mark(self) -> None:
        """Nothing runs late on a CPU."""

    def begin(self, mark: Any) -> None:
        """Nothing to wait for."""

    def store(self, group: CopyGroup) -> None:
        """Copy a run of pages to the host."""
        first, count = group.pages[0], len(group.pages)
        for pool, host in self._parts:
            host[group.host : group.host + count] = pool[:, first : first + count].swapaxes(0, 1)

    def load(self, group: CopyGroup) -> None:
        """Copy a run of pages from the host."""
        first, count = group.pages[0], len(group.pages)
        for pool, host in self._parts:
            pool[:, first : first + count] = host[group.host : group.host + count].swapaxes(0, 1)

    def finish(self) -> None:
        """What was copied is there."""


def raw(part: torch.Tensor) -> torch.Tensor:
    """Return ``[a, b, c, bytes]`` of ``[a, b, c, ...]``: numpy knows no bfloat16."""
    return part.flatten(3).view(torch.uint8)


def _movable(part: torch.Tensor) -> torch.Tensor:
    """Return eight-bit numbers as bytes: not every torch gathers fp8 as it is."""
    return part.view(torch.uint8) if part.element_size() == 1 else part


class CudaCopier(Copier):
    """Copies on a stream of its own; pool pages are gathered on the device into a run."""

    straight = False

    def __init__(self, pool: Sequence[torch.Tensor], host: Sequence[torch.Tensor]) -> None:
        self._parts = [
            (_movable(part), _movable(other)) for part, other in zip(pool, host, strict=True)
        ]
        self._device = pool[0].device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event:
        """Return a mark behind all that the engine's thread has launched so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def begin(self, mark: Any) -> None:
        """Let the stream wait for the mark: pages are read when written, written when read."""
        self._stream.wait_event(mark)

    def store(self, group: CopyGroup) -> None:
        """Gather pages, then copy them to the host in one piece."""
        count = len(group.pages)
        with torch.cuda.stream(self._stream):
            for pool, host in self._parts:
                gathered = pool.index_select(2, self._index(group)).movedim(2, 0).contiguous()
                host[group.host : group.host + count].copy_(gathered, non_blocking=True)

    def load(self, group: CopyGroup) -> None:
        """Copy pages from the host in one piece, then put them into their places."""
        count = len(group.pages)
        with torch.cuda.stream(self._stream):
            for pool, host in self._parts:
                brought = host[group.host : group.host + count].to(self._device, non_blocking=True)
                pool.index_copy_(2, self._index(group), brought.movedim(0, 2))

    def _index(self, group: CopyGroup) -> torch.Tensor:
        return torch.tensor(group.pages, dtype=torch.int64, device=self._device)

    def finish(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()
