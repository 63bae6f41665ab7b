"""The values a stored table may hold, and what type a column of them has. Nothing here does I/O."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["Scalar", "column_type", "shown", "to_scalar"]

Scalar: TypeAlias = str | int | float | bool | None

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")


def to_scalar(value: Any) -> Scalar:
    """Return a value as one that JSON can hold; NaN becomes None, whatever is unknown its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Beyond 64 bits a number is not one of measurement; as text it stays what it is.
        return value if abs(value) < 2**63 else hex(value)
    if isinstance(value, str):
        # A lone surrogate can be neither stored nor shown.
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, decimal.Decimal):
        return to_scalar(float(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def column_type(values: Iterable[Scalar]) -> str:
    """Return the type that all values share, apart from those that are None.

    Integers among numbers make a number column, timestamps among other texts a text column.
    """
    kinds = {_kind(value) for value in values if value is not None}
    if not kinds:
        return "null"
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {"integer", "number"}:
        return "number"
    return "text" if kinds == {"timestamp", "text"} else "mixed"


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "timestamp" if _TIMESTAMP.fullmatch(str(value)) else "text"


def shown(value: Scalar, limit: int = 80) -> str:
    """Return a value on one line of at most about ``limit`` characters, as prompts show it."""
    if isinstance(value, str):
        plain = value if value.isprintable() else json.dumps(value)[1:-1]
        return plain if len(plain) <= limit else plain[: limit - 1] + "…"
    return "-" if value is None else json.dumps(value)
