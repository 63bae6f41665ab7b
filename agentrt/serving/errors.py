"""Errors as OpenAI clients expect them: a status, a JSON object, and the remedy in the message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from agentrt.errors import (
    AgentRTError,
    BackendUnavailable,
    Cancelled,
    ConfigError,
    EngineFault,
    InvalidRequest,
    ProgramTooLarge,
    QueueFull,
    QuotaExceeded,
    RequestError,
)

__all__ = [
    "AccessDenied",
    "BodyTooLarge",
    "Draining",
    "FieldError",
    "NotFound",
    "Refusal",
    "refusal",
]


class FieldError(InvalidRequest):
    """A field of the request body is wrong; ``param`` names it."""

    def __init__(self, param: str, problem: str, *, remedy: str) -> None:
        super().__init__(f"{param} {problem}.", remedy=remedy)
        self.param = param


class NotFound(RequestError, LookupError):
    """The model, program or path that was asked for does not exist."""


class AccessDenied(RequestError, PermissionError):
    """The request carries no API key that this server knows."""


class BodyTooLarge(RequestError):
    """The request body is larger than the server reads."""


class Draining(BackendUnavailable):
    """The server is shutting down and starts no new turn."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error ready to be sent: HTTP status, extra headers, JSON body."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    error: type[Exception]
    status: int
    type: str
    code: str | None
    retry: bool = False


# The first row whose class matches; subclasses stand before their bases.
_KINDS = (
    _Kind(AccessDenied, 401, "authentication_error", "invalid_api_key"),
    _Kind(NotFound, 404, "invalid_request_error", "not_found"),
    _Kind(BodyTooLarge, 413, "invalid_request_error", "request_too_large"),
    _Kind(ProgramTooLarge, 400, "invalid_request_error", "context_length_exceeded"),
    _Kind(QuotaExceeded, 429, "rate_limit_error", "quota_exceeded", retry=True),
    _Kind(QueueFull, 429, "rate_limit_error", "queue_full", retry=True),
    _Kind(InvalidRequest, 400, "invalid_request_error", "invalid_value"),
    _Kind(ConfigError, 400, "invalid_request_error", "invalid_value"),
    _Kind(EngineFault, 503, "server_error", "engine_fault", retry=True),
    _Kind(Cancelled, 503, "server_error", "cancelled", retry=True),
    _Kind(BackendUnavailable, 503, "server_error", "unavailable", retry=True),
    _Kind(AgentRTError, 500, "server_error", "internal_error"),
)


def refusal(error: AgentRTError, *, retry_after: int) -> Refusal:
    """Return how ``error`` is told to a client.

    ``retry_after`` is in seconds, for errors that do not know better themselves.
    """
    kind = next(row for row in _KINDS if isinstance(error, row.error))
    body = {
        "error": {
            "message": str(error),
            "type": kind.type,
            "param": getattr(error, "param", None),
            "code": kind.code,
        }
    }
    seconds = math.ceil(getattr(error, "retry_after", retry_after))
    headers = {"retry-after": str(seconds)} if kind.retry else {}
    return Refusal(kind.status, headers, body)
