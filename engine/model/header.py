"""Read what a safetensors file holds from its header alone.

The safetensors library maps the whole file first, which a machine refuses for a file that is larger
than its memory: just where a plain answer is wanted.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from agentrt.errors import ModelError

__all__ = ["TensorEntry", "read_header"]

_MOST = 100_000_000
"""Bytes of the longest header that the format allows."""
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as its file's header describes it; ``offset`` is of its first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name, having read its header only.

    Raises:
        ModelError: the file is cut short, or is no safetensors file.
    """
    try:
        with file.open("rb") as source:
            size = file.stat().st_size
            start = source.read(8)
            if len(start) < 8:
                raise ValueError(f"it has {size} bytes")
            (length,) = struct.unpack("<Q", start)
            if length > min(_MOST, size - 8):
                raise ValueError(f"its header would be {length:,} bytes long")
            header = json.loads(source.read(length))
        return _entries(file, header, 8 + length, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file} is not a whole safetensors file: {error}.", remedy="Download the model again."
        ) from error


def _entries(file: Path, header: Any, start: int, room: int) -> dict[str, TensorEntry]:
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    found: dict[str, TensorEntry] = {}
    end = 0
    for name, value in header.items():
        if name == "__metadata__":
            continue
        entry, last = _entry(file, name, value, start)
        found[name] = entry
        end = max(end, last)
    if end != room:
        raise ValueError(f"{room:,} bytes follow its header, which speaks of {end:,}")
    return found


def _entry(file: Path, name: str, value: Any, start: int) -> tuple[TensorEntry, int]:
    """Return a tensor and where its data ends, counted from the end of the header."""
    if not isinstance(value, dict):
        raise ValueError(f"its entry for {name} is no object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not (isinstance(dtype, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise ValueError(f"its entry for {name} is garbled")
    begin, end = offsets
    expected = math.prod(shape) * _SIZES.get(dtype, 0)
    if begin > end or (dtype in _SIZES and end - begin != expected):
        raise ValueError(f"{name} takes {end - begin:,} bytes, not {expected:,}")
    return TensorEntry(file, dtype, tuple(shape), start + begin), end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
