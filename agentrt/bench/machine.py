"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

import agentrt

__all__ = ["machine_facts"]


def machine_facts() -> dict[str, Any]:
    """Return platform, processor, CPUs usable, memory in bytes, Python and agentrt versions."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "agentrt": getattr(agentrt, "__version__", "unknown"),
    }


def _processor() -> str:
    """Return the processor's name as the kernel tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
