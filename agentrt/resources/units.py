"""Pure: sizes, cores, durations and counts as people write them."""

from __future__ import annotations

import math
import re

from agentrt.errors import ConfigError

__all__ = ["parse_cpu", "parse_pids", "parse_seconds", "parse_size", "show_seconds", "show_size"]

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of ``512m``, ``1.5g``, ``64MiB``, ``1048576``; units are powers of 1024.

    Raises:
        ConfigError: it is no positive size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    size = int(float(found[1]) * UNITS[found[2]]) if found and len(text) < 32 else 0
    if size <= 0:
        raise ConfigError(f"{text!r} is not a size.", remedy="Write it as 512m, 2g or 1048576.")
    return size


def parse_cpu(text: str) -> float:
    """Cores as a positive number.

    Raises:
        ConfigError: it is not one.
    """
    return _number(text, "a number of cores", "Write it as 2 or 0.5.")


def parse_seconds(text: str) -> float:
    """Seconds of ``30``, ``30s``, ``5m``, ``1h``.

    Raises:
        ConfigError: it is no positive duration.
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text.strip()[-1:].lower())
    number = text.strip()[:-1] if unit else text
    return _number(number, "a duration", "Write it as 30, 30s, 5m or 1h.", shown=text) * (unit or 1)


def parse_pids(text: str) -> int:
    """A positive number of processes.

    Raises:
        ConfigError: it is not one.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is not a number of processes.", remedy="Write it as 64.")
    return int(text)


def _number(text: str, what: str, remedy: str, *, shown: str | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{shown or text!r} is not {what}.", remedy=remedy)
    return value


def show_size(size: int) -> str:
    """Bytes as ``512m`` or ``1.5g``: rounded, and readable by ``parse_size``."""
    if size >= 1 << 30:
        return f"{size / (1 << 30):.4g}g"
    if size >= 1 << 20:
        return f"{size / (1 << 20):.0f}m"
    return f"{max(1, size >> 10)}k"


def show_seconds(seconds: float) -> str:
    """Seconds as ``0.3 s`` or ``2.5 min``."""
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"
