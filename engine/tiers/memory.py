"""Host memory for pages of KV: in huge pages where the kernel gives them, pinned for a CUDA device.

Copies between host and device run at the link's full rate from pinned memory alone. Registering it
(``cudaHostRegister``) pins and maps page by page: with 2 MiB pages that is 512 times fewer.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch

from agentrt.errors import ConfigError

__all__ = ["HostMemory", "huge_bytes"]

_logger = logging.getLogger(__name__)

HUGE = 2 << 20
"""Bytes of a huge page on x86-64, and on Arm with 4 KiB pages; elsewhere only an alignment."""


class HostMemory:
    """One stretch of zeroed memory, cut into tensors.

    Args:
        parts: bytes of each tensor.
        device: what it is pinned for; a CPU needs no pinning.

    Raises:
        ConfigError: the memory cannot be had.
    """

    def __init__(self, parts: Sequence[int], device: torch.device) -> None:
        places = [0]
        for part in parts:
            places.append(_up(places[-1] + part))
        self.bytes = places[-1]
        self._registered = False
        self._whole = self._map()
        if device.type == "cuda":
            self._pin()
        self.parts = [
            self._whole[place : place + part]
            for place, part in zip(places[:-1], parts, strict=True)
        ]
        """Tensors ``[bytes]`` uint8, one for each of ``parts``."""

    @property
    def pinned(self) -> bool:
        """Whether a CUDA device copies from and to it directly."""
        return self._registered or self._whole.is_pinned()

    def _map(self) -> torch.Tensor:
        """Map, ask for huge pages, and touch: what cannot be had fails here."""
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            # One page more, so that it can begin where a huge page may.
            mapped = mmap.mmap(-1, self.bytes + HUGE, flags=kind)
        except (OSError, OverflowError, ValueError) as error:
            raise _refused(self.bytes, str(error)) from error
        try:
            mapped.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, AttributeError) as error:
            _logger.info("Host KV lies in small pages: the kernel has no huge ones (%s).", error)
        raw = torch.frombuffer(mapped, dtype=torch.uint8)  # keeps the mapping
        first = -raw.data_ptr() % HUGE
        whole = raw[first : first + self.bytes].zero_()
        huge = huge_bytes(whole.data_ptr(), self.bytes)
        _logger.info("Host KV: %d MiB, %d of them in huge pages.", self.bytes >> 20, huge >> 20)
        return whole

    def _pin(self) -> None:
        """Register the memory with the driver; where that fails, take torch's own and say so."""
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(cudart.cudaHostRegister(self._whole.data_ptr(), self.bytes, 0))
        if code == 0:
            self._registered = True
            return
        _logger.warning(
            "Host KV in huge pages cannot be pinned (CUDA error %d): it lies in small ones.", code
        )
        try:
            self._whole = torch.zeros(self.bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise _refused(self.bytes, str(error).splitlines()[0]) from error

    def release(self) -> None:
        """Unpin it. No copy may be under way, none comes after. Idempotent."""
        if self._registered:
            self._registered = False
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            cudart.cudaHostUnregister(self._whole.data_ptr())


def huge_bytes(address: int, size: int, maps: Path = Path("/proc/self/smaps")) -> int:
    """Return the bytes in huge pages of the mappings that ``[address, address + size)`` touches.

    0 where the kernel does not tell.
    """
    found, inside = 0, False
    with contextlib.suppress(OSError), maps.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            head, _, rest = line.partition(" ")
            if "-" in head and not head.endswith(":"):
                first, _, last = head.partition("-")
                inside = int(first, 16) < address + size and int(last, 16) > address
            elif inside and head == "AnonHugePages:":
                found += 1024 * int(rest.split()[0])
    return found


def _up(count: int) -> int:
    """Round up, so that every part begins where any dtype may."""
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


def _refused(size: int, why: str) -> ConfigError:
    return ConfigError(
        f"A host tier of {size:,} bytes cannot be had: {why}.",
        remedy="Ask for a smaller --host-kv.",
    )
