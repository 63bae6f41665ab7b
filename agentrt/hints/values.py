"""Values as clients write them: names, flags, numbers, durations. None means: not usable."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "DEFAULT_TTL",
    "MAX_NAME",
    "MAX_TTL",
    "Convert",
    "Usable",
    "cache_control",
    "duration",
    "flag",
    "label",
    "name",
    "number",
    "retention_directives",
    "reuse_hint",
    "whole",
]

MAX_NAME = 256
MAX_TTL = 3600.0
DEFAULT_TTL = 300.0
"""Seconds that ``cache_control`` without ``ttl`` means (vLLM RFC #52113)."""
MAX_DIRECTIVES = 64
FAR = 10**15
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)")


class Usable(NamedTuple):
    """A value that can be used; ``clamped`` says that it was brought into its range. A value of
    None was understood, and asks for nothing.
    """

    value: Any
    clamped: bool = False


Convert: TypeAlias = Callable[[Any], Usable | None]


def name(value: Any) -> Usable | None:
    """Read a name: 1 to 256 printable characters, or an integer written out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < FAR:
        value = str(value)
    return label(value)


def label(value: Any) -> Usable | None:
    """Read a name that has to be text: a tool's, a step's."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    return Usable(text) if 0 < len(text) <= MAX_NAME and text.isprintable() else None


def flag(value: Any) -> Usable | None:
    """Read yes or no: a boolean, 0 or 1, or one of these as a word."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if not isinstance(value, bool | int | str) or (isinstance(value, int) and abs(value) > 1):
        return None
    found = words.get(str(value).strip().lower())
    return None if found is None else Usable(found)


def number(low: float, high: float, scale: float = 1.0) -> Convert:
    """Return a reader of numbers, also written as text, times ``scale``, clamped to a range."""

    def convert(value: Any) -> Usable | None:
        found = _finite(value)
        if found is None:
            return None
        inside = max(low, min(high, found * scale))
        return Usable(inside, clamped=inside != found * scale)

    return convert


def whole(low: int, high: int, scale: int = 1) -> Convert:
    """Return a reader of numbers as ``number``'s, rounded down to an integer."""
    inner = number(low, high, scale)

    def convert(value: Any) -> Usable | None:
        found = inner(value)
        return None if found is None else Usable(math.floor(found.value), found.clamped)

    return convert


def duration(value: Any) -> Usable | None:
    """Read seconds to keep something: a number, or ``30s``, ``5m``, ``1h``; 0 to 3,600."""
    if isinstance(value, str):
        match = DURATION.fullmatch(value.strip().lower())
        if match is not None:
            value = float(match[1]) * UNITS[match[2]]
    return number(0.0, MAX_TTL)(value)


def cache_control(value: Any) -> Usable | None:
    """Read ``{"type": "ephemeral", "ttl": …}``; without ``ttl`` it means five minutes."""
    if not isinstance(value, Mapping) or value.get("type") != "ephemeral":
        return None
    ttl = value.get("ttl")
    return Usable(DEFAULT_TTL) if ttl is None else duration(ttl)


def reuse_hint(value: Any) -> Usable | None:
    """Read ``discard`` as a time of 0; ``keep`` and ``neutral`` leave it to the policy."""
    known = {"discard": Usable(0.0), "keep": Usable(None), "neutral": Usable(None)}
    return known.get(value) if isinstance(value, str) else None


def retention_directives(value: Any) -> Usable | None:
    """Read ``[{start, end, priority, duration}]``: the longest duration, for the whole context."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_DIRECTIVES:
        return None
    found: list[Usable] = []
    for row in value:
        told = row.get("duration") if isinstance(row, Mapping) else ...
        seconds = Usable(0.0) if told is None else duration(told)
        if seconds is None:
            return None
        found.append(seconds)
    return max(found) if max(found).value > 0 else Usable(None)


def _finite(value: Any) -> float | None:
    if isinstance(value, str) and len(value) <= 32:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return float(max(-FAR, min(FAR, value)))  # huge ones have no float
    return value if math.isfinite(value) else None
