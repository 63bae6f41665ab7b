"""Waiting for what a device was told, on CUDA; on the CPU it has been done by then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Mark", "new_stream"]


class Mark:
    """A place in what was launched on a device; nothing is to be waited for before it is set."""

    def __init__(self, device: torch.device) -> None:
        # torch's classes have no annotations.
        make: Callable[..., Any] = torch.cuda.Event
        self._device = device
        self._event = make() if device.type == "cuda" else None

    def set(self) -> None:
        """Set the mark behind all that was launched so far."""
        if self._event is not None:
            # The thread's current device may be another one.
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Block until what was launched before the mark is done."""
        if self._event is not None:
            self._event.synchronize()


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a new stream of a CUDA device."""
    make: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
    return make(device)
