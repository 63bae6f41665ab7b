"""The values of a query's parameters: checked, converted, and never more than values."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from agentrt.workflows.queries_model import BadArgument, QueryParameter, QueryValue

__all__ = ["TIMESTAMP_FORMATS", "TYPES", "convert", "duration_seconds", "parse_timestamp"]

TIMESTAMP_FORMATS = ("iso", "space", "epoch", "epoch_ms")

_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DURATION = re.compile(r"(\d{1,9}(ms|s|m|h|d|w|y)){1,7}", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def convert(parameter: QueryParameter, value: Any) -> QueryValue:
    """Return a value as the parameter's type, or None where an optional one is not given.

    Raises:
        BadArgument: the value is missing, of another type, or out of the parameter's bounds.
    """
    if value is None:
        value = parameter.default
    if value is None:
        if parameter.required:
            raise _bad(parameter, "has no value", "Give it one, or a default in the template.")
        return None
    try:
        made = TYPES[parameter.type](value)
    except (ValueError, OverflowError) as error:
        raise _bad(parameter, f"cannot be {_brief(value)}: {error}", "Correct the value.") from None
    _check(parameter, made)
    return _formatted(made, parameter.format) if parameter.type == "timestamp" else made


def _check(parameter: QueryParameter, value: Any) -> None:
    if isinstance(value, str) and len(value) > parameter.max_length:
        raise _bad(parameter, f"has {len(value)} characters", f"At most {parameter.max_length}.")
    if parameter.choices and str(value) not in parameter.choices:
        allowed = ", ".join(parameter.choices)
        raise _bad(parameter, f"cannot be {_brief(value)}", f"It is one of: {allowed}.")
    if parameter.minimum is not None and value < parameter.minimum:
        raise _bad(parameter, f"is {value}", f"It is at least {parameter.minimum:g}.")
    if parameter.maximum is not None and value > parameter.maximum:
        raise _bad(parameter, f"is {value}", f"It is at most {parameter.maximum:g}.")


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError("it is no text")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return str(value)


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("it is no whole number")
    if isinstance(value, str) and not _INTEGER.fullmatch(value.strip()):
        raise ValueError("it is no whole number")
    made = int(value)
    if not -(2**63) <= made < 2**63:
        raise ValueError("it does not fit 64 bits")
    return made


def _number(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("it is no number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError("it is no decimal number")
    made = float(value)
    if not math.isfinite(made):
        raise ValueError("it is not finite")
    return made


def _boolean(value: Any) -> bool:
    known = _BOOLEANS.get(str(value).strip().lower())
    if known is None:
        raise ValueError("it is neither true nor false")
    return known


def _duration(value: Any) -> str:
    text = f"{value}s" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if not _DURATION.fullmatch(text):
        raise ValueError("it is no duration such as 30s, 5m or 1h30m")
    return text


def duration_seconds(text: str) -> float:
    """Return a duration such as ``1h30m`` in seconds.

    Raises:
        ValueError: ``text`` is no duration.
    """
    parts = re.findall(r"(\d+)(ms|[smhdwy])", _duration(text))
    return sum(int(count) * _UNITS[unit] for count, unit in parts)


def parse_timestamp(value: Any) -> datetime.datetime:
    """Return a point in time, in UTC, of ISO-8601 text or of seconds since 1970.

    Text without an offset is UTC; a date alone is its first moment.

    Raises:
        ValueError: ``value`` is none.
    """
    if isinstance(value, datetime.datetime):
        moment = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        moment = datetime.datetime.fromtimestamp(value, datetime.UTC)
    elif isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value.strip()):
        moment = datetime.datetime.fromisoformat(value.strip())
    else:
        raise ValueError("it is no time such as 2026-03-01T10:00:00Z")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC)


def _formatted(moment: datetime.datetime, style: str) -> str | int | float:
    if style == "epoch":
        seconds = moment.timestamp()
        return int(seconds) if seconds.is_integer() else seconds
    if style == "epoch_ms":
        return round(moment.timestamp() * 1000)
    plain = moment.replace(tzinfo=None)
    return plain.isoformat(" ") if style == "space" else plain.isoformat() + "Z"


TYPES: Mapping[str, Callable[[Any], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "timestamp": parse_timestamp,
    "duration": _duration,
}
"""Every type of parameter, and how a value of it is read; each raises ValueError."""


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _bad(parameter: QueryParameter, what: str, remedy: str) -> BadArgument:
    return BadArgument(f"The query parameter {parameter.name!r} {what}.", remedy=remedy)
