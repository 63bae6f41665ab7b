"""Recording what a function launches, to launch it again at once: CUDA graphs, and none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from agentrt.engine.gpu.events import new_stream

__all__ = ["Capturer", "CudaCapturer", "Replayed"]

WARM_UPS = 2
"""Runs before a recording: libraries and kernels that are loaded at first use must be there."""


class Capturer(Protocol):
    """Makes functions over buffers that keep their places quick to run again."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run ``run`` at least once, and return what does the same again, on what is there then.

        ``run`` must wait for nothing, and read and write nothing but tensors that keep their
        places. Recordings share their memory, so the largest is to come first, and what one leaves
        must be read before another one runs. They need not keep ``run`` alive, nor what it uses.
        """
        ...


class Replayed:
    """Records nothing: the function itself is called again. For the CPU, and without graphs."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run ``run`` once and return it."""
        run()
        return run


class CudaCapturer:
    """Records CUDA graphs, all in one pool of memory, which goes when the last of them goes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Warm up on a side stream, record there, and return the graph's replay."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                run()
            self._stream.synchronize()
            # Other threads of this process may use the device while this one records.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay
