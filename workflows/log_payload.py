"""What an event of the log may hold: small JSON. Data goes into handles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrt.errors import CapacityError, InvalidRequest

__all__ = ["PayloadTooLarge", "encode"]


class PayloadTooLarge(CapacityError, ValueError):
    """An event's data is larger than the log takes."""


def encode(kind: str, data: Mapping[str, Any] | None, most: int) -> str:
    """The data of an event of this kind as JSON of at most so many bytes.

    Raises:
        InvalidRequest: it is not JSON.
        PayloadTooLarge: it is too large.
    """
    try:
        text = json.dumps(dict(data or {}), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"The data of {kind} is not JSON: {error}.",
            remedy="Give strings, finite numbers, booleans, None, lists and mappings of them.",
        ) from error
    size = len(text.encode())
    if size > most:
        raise PayloadTooLarge(
            f"The data of {kind} has {size} bytes; the log takes {most}.",
            remedy="Put the data into a file and its handle (id, digest, sample) into the log.",
        )
    return text
