"""The one error tree of agentrt.

Every error says what happened and, in ``remedy``, what to do about it; ``str(error)`` shows both.
Leaves also inherit the builtin that a caller would expect, so ``except TimeoutError`` works.
"""

from __future__ import annotations

__all__ = [
    "AgentRTError",
    "BackendUnavailable",
    "Cancelled",
    "CapacityError",
    "ConfigError",
    "EngineFault",
    "GrammarError",
    "GuideError",
    "InternalError",
    "InvalidRequest",
    "ModelError",
    "ModelUnsupported",
    "OutputLimitExceeded",
    "ProgramTooLarge",
    "QueueFull",
    "QuotaExceeded",
    "RequestError",
    "SandboxError",
    "SandboxGone",
    "SandboxUnavailable",
    "ToolNotStarted",
    "ToolOutOfMemory",
    "ToolTimeout",
    "WorkloadError",
]


class AgentRTError(Exception):
    """Base of everything agentrt raises on purpose.

    Args:
        message: what happened, in one sentence.
        remedy: what the caller can do about it, in one sentence or a command.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(AgentRTError, ValueError):
    """A setting, flag or file given by the user is wrong."""


class ModelError(ConfigError):
    """A model directory cannot be loaded: missing, malformed or unsupported."""


class ModelUnsupported(ModelError):
    """A model is in order, but asks for something that is not computed here."""


class GuideError(ConfigError):
    """A troubleshooting guide, its queries or its recordings are wrong; names file and line."""


class WorkloadError(ConfigError):
    """A workload file is missing or malformed; the message names file and line."""


class CapacityError(AgentRTError):
    """The request is well formed but does not fit what this machine was given."""


class ProgramTooLarge(CapacityError):
    """A turn can never fit the page pool, whatever else leaves it."""


class QueueFull(CapacityError):
    """Too many turns are waiting; try again later."""


class QuotaExceeded(QueueFull):
    """A tenant's quota is used up, and so are its places in the queue.

    ``retry_after`` is in seconds; a minute, the span of token quotas, unless it is known better.
    """

    def __init__(self, message: str, *, remedy: str, retry_after: float = 60.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after


class RequestError(AgentRTError):
    """One request cannot be served; other requests are not affected."""


class InvalidRequest(RequestError, ValueError):
    """A field of the request is out of its range or not supported."""


class GrammarError(InvalidRequest):
    """A grammar cannot be used: malformed, unsupported, or no output matches it.

    ``param`` names the field that holds it.
    """

    def __init__(self, message: str, *, remedy: str, param: str = "grammar") -> None:
        super().__init__(message, remedy=remedy)
        self.param = param


class Cancelled(RequestError):
    """The turn was cancelled by its owner, or by the shutdown of the engine."""


class BackendUnavailable(AgentRTError, RuntimeError):
    """Something that agentrt drives (engine thread, Docker, a device) does not answer."""


class EngineFault(BackendUnavailable):
    """The engine failed while it computed a turn; the message says of what. Others go on."""


class SandboxUnavailable(BackendUnavailable):
    """No sandbox of the asked kind can be made on this machine."""


class SandboxError(AgentRTError, RuntimeError):
    """A sandbox operation failed."""


class SandboxGone(SandboxError):
    """The sandbox was closed or its container has died."""


class ToolNotStarted(SandboxError):
    """The command never ran: not found, not executable, or its cgroup could not be made."""


class ToolTimeout(SandboxError, TimeoutError):
    """The command outran its time limit and its whole process tree was killed."""


class ToolOutOfMemory(SandboxError, MemoryError):
    """The kernel killed a process of the command's own cgroup for lack of memory."""


class OutputLimitExceeded(SandboxError):
    """A file or an output is larger than the stated cap."""


class InternalError(AgentRTError, RuntimeError):
    """A bug in agentrt: an invariant does not hold. Please report it with the message."""

    def __init__(
        self, message: str, *, remedy: str = "This is a bug in agentrt; please report it."
    ) -> None:
        super().__init__(message, remedy=remedy)
