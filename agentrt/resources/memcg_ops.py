"""``memcg_bpf_ops``: a proposed kernel interface that lets BPF delay a cgroup's memory charges.

It is in no released kernel, so nothing here drives it: we recognise it, by either set of hook
names that was proposed, and say that it is there and untested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["MemcgOps", "detect_memcg_ops"]

BTF = Path("/sys/kernel/btf/vmlinux")
HOOKS: dict[Literal["v6", "v7"], bytes] = {
    "v6": b"\0get_high_delay_ms\0",
    "v7": b"\0memcg_charged\0",
}


@dataclass(frozen=True, slots=True)
class MemcgOps:
    """Whether the kernel has the interface; ``hooks`` names the generation of its hooks."""

    present: bool
    hooks: Literal["v6", "v7", "unknown", ""] = ""


def detect_memcg_ops(btf: Path = BTF) -> MemcgOps:
    """Look for the struct and its hooks among the names of the kernel's BTF."""
    try:
        names = btf.read_bytes()
    except OSError:
        return MemcgOps(False)
    if b"\0memcg_bpf_ops\0" not in names:
        return MemcgOps(False)
    for generation, hook in HOOKS.items():
        if hook in names:
            return MemcgOps(True, generation)
    return MemcgOps(True, "unknown")
