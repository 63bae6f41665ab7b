"""Memory of all cgroups below one, read in the kernel in one go (memcg functions of Linux 7.0)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from agentrt.ebpf import BpfObject

__all__ = ["KernelUsage", "MemoryUsage"]

RECORD = struct.Struct("=QQQQQ")


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """One cgroup: bytes in use (as ``memory.current``) and counters of ``memory.events``."""

    cgroup_id: int
    size: int
    high: int
    max: int
    oom_kill: int


class KernelUsage:
    """Samples ``memory.current`` and ``memory.events`` of whole trees: three system calls in all,
    where reading files costs six per cgroup.

    Raises:
        BackendUnavailable: the kernel has no memcg functions for BPF; read the files instead.
    """

    def __init__(self) -> None:
        self._object = BpfObject("memcg_usage")

    def sample(self, directory: Path) -> dict[int, MemoryUsage]:
        """By cgroup id: the directory and everything below it that has the memory controller.

        Raises:
            OSError: the directory is not there.
            BackendUnavailable: the kernel does not attach the iterator.
        """
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            raw = self._object.read_iterator("memory_usage", cgroup=fd)
        finally:
            os.close(fd)
        return {fields[0]: MemoryUsage(*fields) for fields in RECORD.iter_unpack(raw)}

    def close(self) -> None:
        """Unload; idempotent."""
        self._object.close()
