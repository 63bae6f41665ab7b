"""The small notations of a guide: durations, sizes, yes and no, names of steps, arguments."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping

from agentrt.workflows.guide import END

__all__ = [
    "arguments",
    "closest",
    "count",
    "duration",
    "in_ticks",
    "number",
    "size",
    "split_outside_quotes",
    "step_id",
    "targets",
    "unquote",
    "yes_no",
]

_DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>ms|s|m|min|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?:i?b)?")
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_STEP = re.compile(r"step\s*(?P<number>\d+(?:\.\d+)*[a-z]?)", re.IGNORECASE)
_LEAD = re.compile(r"(?:go to|proceed to|continue with|->|→)\s*", re.IGNORECASE)


def duration(text: str) -> float:
    """Return seconds for ``30s``, ``10m``, ``1.5h``, ``500ms``, ``2d`` or a bare number.

    Raises:
        ValueError: anything else.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not a duration such as 30s or 10m")
    seconds = float(found["value"]) * _SECONDS[found["unit"] or "s"]
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is too long")
    return seconds


def size(text: str) -> int:
    """Return bytes for ``512m``, ``2g``, ``1.5 GiB`` or a bare number (powers of 1,024).

    Raises:
        ValueError: anything else, or nothing.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not a size such as 512m or 2g")
    value = int(float(found["value"]) * _BYTES[found["unit"]]) if found["unit"] else _bytes(found)
    if value <= 0:
        raise ValueError("a size must be positive")
    return value


def _bytes(found: re.Match[str]) -> int:
    if "." in found["value"]:
        raise ValueError("a number of bytes must be whole")
    return int(found["value"])


def number(text: str) -> float:
    """Return a positive, finite decimal number.

    Raises:
        ValueError: anything else.
    """
    value = float(text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive number")
    return value


def count(text: str) -> int:
    """Return a whole number of at least 1; digits may be grouped by ``_`` or ``,``.

    Raises:
        ValueError: anything else.
    """
    value = int(text.replace(",", "_"))
    if value < 1:
        raise ValueError(f"{text!r} is not a whole number of at least 1")
    return value


def yes_no(text: str) -> bool:
    """Return whether the text says yes.

    Raises:
        ValueError: it says neither yes nor no.
    """
    word = text.strip().lower()
    if word not in ("yes", "no", "true", "false"):
        raise ValueError(f"{text!r} is neither yes nor no")
    return word in ("yes", "true")


def step_id(text: str) -> str | None:
    """Return ``Step3.1`` for ``Step 3.1``, ``end`` for ``End``; None for anything else."""
    word = text.strip()
    if word.lower() == END:
        return END
    found = _STEP.fullmatch(word)
    return f"Step{found['number'].lower()}" if found else None


def targets(text: str) -> tuple[str, ...] | None:
    """Return the steps of ``Step 2, Step 3 and end``; None where a part is no step."""
    plain = _LEAD.sub("", text.strip().rstrip("."), count=1)
    found = [step_id(part) for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", plain)]
    return tuple(step for step in found if step) if found and all(found) else None


def in_ticks(text: str) -> str | None:
    """Return what a text that is one code span holds; None where it is anything else."""
    word = text.strip()
    found = re.fullmatch(r"(?P<ticks>`+)(?P<code>.+)(?P=ticks)", word)
    if not found or found["ticks"] in found["code"]:
        return None
    return found["code"].strip()


def unquote(text: str) -> str:
    """Return a value without its double (JSON) or single quotes, if it has any.

    Raises:
        ValueError: a quote is opened and never closed, or an escape is unknown.
    """
    word = text.strip()
    if word.startswith('"'):
        value = json.loads(word)
        if not isinstance(value, str):
            raise ValueError(f"{text!r} is not one quoted text")
        return value
    if len(word) >= 2 and word[0] == word[-1] == "'":
        return word[1:-1]
    return word


def split_outside_quotes(text: str, mark: str = ",") -> list[str]:
    """Split at ``mark`` where it is not between double quotes; parts are stripped."""
    pattern = rf'((?:[^"{re.escape(mark)}]|"(?:[^"\\]|\\.)*"?)*)(?:{re.escape(mark)}|$)'
    parts = [found.group(1).strip() for found in re.finditer(pattern, text)]
    return [part for part in parts if part]


def arguments(text: str) -> dict[str, str]:
    """Return the arguments of ``limit=5, region="eu"`` as texts.

    Raises:
        ValueError: a part is not ``name=value``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for part in split_outside_quotes(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier() or not value.strip():
            raise ValueError(f"{part!r} is not of the form name=value")
        if name.strip() in found:
            raise ValueError(f"{name.strip()!r} is given twice")
        found[name.strip()] = unquote(value)
    return found


def closest(word: str, known: Iterable[str] | Mapping[str, object], cutoff: float = 0.75) -> str:
    """Return the known word that this one may be a misspelling of, or empty."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=cutoff)
    return found[0] if found else ""
