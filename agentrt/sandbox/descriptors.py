"""Reading and writing descriptors without a thread and without end-of-stream surprises."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import anyio

__all__ = ["read_all", "readable", "write_all"]

CHUNK = 1 << 16


async def read_all(descriptor: int, feed: Callable[[bytes], None]) -> None:
    """Feed what a non-blocking descriptor delivers until its end, or until it breaks."""
    while True:
        await anyio.wait_readable(descriptor)
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            return
        if not data:
            return
        feed(data)


async def write_all(descriptor: int, data: bytes) -> bool:
    """Write everything to a non-blocking descriptor; ``False`` when the reader has gone."""
    view = memoryview(data)
    while view:
        await anyio.wait_writable(descriptor)
        try:
            view = view[os.write(descriptor, view[:CHUNK]) :]
        except BlockingIOError:
            continue
        except OSError:
            return False
    return True


def readable(descriptor: int) -> bool:
    """Whether a read would not block now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
