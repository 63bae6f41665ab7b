"""How idle threads wait, decided before torch is loaded: it reads this once, when it is."""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["wait_passively"]

_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively(environ: MutableMapping[str, str]) -> None:
    """Let OpenMP's idle threads sleep, unless the user has said anything about it.

    By default they spin, which takes a processor from whoever could use it: with a busy neighbour,
    from the very thread that they wait for. Only a process of our own may decide this, and only
    before torch is imported.
    """
    if not any(name in environ for name in _SAID):
        environ["OMP_WAIT_POLICY"] = "passive"
