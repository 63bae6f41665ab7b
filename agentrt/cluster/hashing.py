"""Rendezvous hashing: every key ranks the workers, and a worker more or less moves few keys.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998. When one
of n workers leaves, only its own keys move; when one joins, it takes about 1/(n + 1) of all keys.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from hashlib import blake2b

__all__ = ["rendezvous", "weight"]


def weight(key: Hashable, worker: str) -> int:
    """Return the score of ``worker`` for ``key``: the same in every process and every run."""
    return int.from_bytes(blake2b(f"{key!r}\0{worker}".encode(), digest_size=8).digest(), "big")


def rendezvous(key: Hashable, workers: Iterable[str], count: int = 1) -> list[str]:
    """Return the ``count`` workers that rank highest for ``key``, best first."""
    ranked = sorted(workers, key=lambda worker: weight(key, worker), reverse=True)
    return ranked[:count]
