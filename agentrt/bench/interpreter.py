"""Which Python a script of the working tree runs on: the one that has what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["use_environment"]


def use_environment(
    root: Path,
    needed: Sequence[str] = ("psutil", "torch"),
    replace: Callable[[str, list[str]], object] = os.execv,
) -> None:
    """Go on in the working tree's own environment where this Python lacks a package.

    Args:
        root: of the working tree; ``scripts/setup`` makes ``.venv`` there.
        needed: packages that must be importable.
        replace: starts this process anew.

    Raises:
        SystemExit: a package is missing here, and there is no environment to go on in.
    """
    missing = [name for name in needed if find_spec(name) is None]
    own = root / ".venv" / "bin" / "python"
    if not missing:
        return
    if own.is_file() and Path(sys.prefix) != own.parents[1]:
        replace(str(own), [str(own), *sys.argv])
    raise SystemExit(
        f"This Python has no {' and no '.join(missing)}. Run scripts/setup first, or name a Python "
        f"that has them: python {sys.argv[0]} …"
    )
