"""What a tool call declares that it needs: from Python, JSON, the shell and the environment.

An intent is a statement by whoever runs the call, often a model: it is clamped to the budgets of
its program, tenant and host (``envelope.py``), and it never changes what a command computes.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from agentrt.errors import ConfigError, InvalidRequest
from agentrt.resources.units import parse_cpu, parse_pids, parse_seconds, parse_size

__all__ = [
    "Intent",
    "MemoryLevel",
    "Network",
    "OnLimit",
    "Priority",
    "current_intent",
    "intent",
    "intent_from_json",
    "merged",
]

MemoryLevel: TypeAlias = Literal["low", "medium", "high"]
Priority: TypeAlias = Literal["low", "normal", "high"]
OnLimit: TypeAlias = Literal["kill", "freeze", "throttle"]
Network: TypeAlias = Literal["none", "host"]
Function = TypeVar("Function", bound=Callable[..., Any])

MINIMUM_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True)
class Intent:
    """What a tool call says of itself; ``None`` where it says nothing, which is then learned.

    Also a context manager (the default for all calls within) and a decorator (for all calls that
    the function makes).

    Args:
        memory: bytes, or ``low`` (256 MiB), ``medium`` (1 GiB), ``high`` (as much as the budgets
            allow).
        cpu: cores.
        pids: processes and threads.
        io: bytes a second, read and written, each.
        network: ``none`` or ``host``; it can take the network away, never give it.
        expect: seconds that it will probably take.
        priority: ``low``, ``normal`` or ``high``.
        on_limit: at its memory limit: ``kill`` it, ``freeze`` it until more can be lent, or
            ``throttle`` it; the last two bounded in time, then killed.
        deadline: seconds from the request after which it is killed, waiting included.
    """

    memory: int | MemoryLevel | None = None
    cpu: float | None = None
    pids: int | None = None
    io: int | None = None
    network: Network | None = None
    expect: float | None = None
    priority: Priority | None = None
    on_limit: OnLimit | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        _check_memory(self.memory)
        for name in ("cpu", "pids", "io", "expect", "deadline"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise _wrong(name, value, "Use a positive number.")
        for name, kind in (
            ("network", Network),
            ("priority", Priority),
            ("on_limit", OnLimit),
        ):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                raise _wrong(name, value, f"Use one of: {', '.join(get_args(kind))}.")

    def to_json(self) -> dict[str, Any]:
        """What is declared, as JSON; reads back with ``intent_from_json``."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __bool__(self) -> bool:
        """Whether anything is declared."""
        return any(getattr(self, name) is not None for name in self.__slots__)

    def __enter__(self) -> Intent:
        stack = _stack.get()
        _stack.set((*stack, merged(self, stack[-1] if stack else None)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _stack.set(_stack.get()[:-1])

    def __call__(self, function: Function) -> Function:
        """Decorate ``function``: the calls that it makes declare this intent."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waiting(*args: Any, **options: Any) -> Any:
                with self:
                    return await function(*args, **options)

            return cast("Function", waiting)

        @functools.wraps(function)
        def plain(*args: Any, **options: Any) -> Any:
            with self:
                return function(*args, **options)

        return cast("Function", plain)


_stack: ContextVar[tuple[Intent, ...]] = ContextVar("agentrt-intents", default=())


def current_intent() -> Intent | None:
    """The intent of the ``with`` block or decorated function around the caller, if any."""
    stack = _stack.get()
    return stack[-1] if stack else None


def merged(first: Intent | None, second: Intent | None) -> Intent:
    """Field by field what ``first`` declares, else what ``second`` does."""
    if not first or not second:
        return first or second or NOTHING
    missing = {
        field.name: getattr(second, field.name)
        for field in fields(Intent)
        if getattr(first, field.name) is None
    }
    return replace(first, **missing)


def intent(
    memory: int | str | None = None,
    cpu: float | str | None = None,
    pids: int | str | None = None,
    io: int | str | None = None,
    network: Network | None = None,
    expect: float | str | None = None,
    priority: Priority | None = None,
    on_limit: OnLimit | None = None,
    deadline: float | str | None = None,
) -> Intent:
    """Declare what a tool call needs: ``intent(memory="1g", cpu=2, expect="30s")``.

    A value, a context manager and a decorator; see ``Intent`` for the fields. Sizes and durations
    may be written as ``1g``, ``512m``, ``30s``, ``5m``.

    Raises:
        ConfigError: a value is out of its range.
    """
    return Intent(
        memory=_memory(memory),
        cpu=_parsed(cpu, parse_cpu),
        pids=_parsed(pids, parse_pids),
        io=_parsed(io, parse_size),
        network=network,
        expect=_parsed(expect, parse_seconds),
        priority=priority,
        on_limit=on_limit,
        deadline=_parsed(deadline, parse_seconds),
    )


def intent_from_json(value: Any) -> Intent:
    """Read an intent that came as JSON, over HTTP, MCP or in a tool call.

    Raises:
        InvalidRequest: it is no object, has an unknown field, or a value is out of its range.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequest("An intent is a JSON object.", remedy='Send {"memory": "1g"}.')
    names = [field.name for field in fields(Intent)]
    unknown = sorted(str(name) for name in value if name not in names)
    if unknown:
        raise InvalidRequest(
            f"An intent has no field {unknown[0]!r}.", remedy=f"Use: {', '.join(names)}."
        )
    for name, found in value.items():
        if isinstance(found, bool) or not isinstance(found, (int, float, str, type(None))):
            raise InvalidRequest(f"{name} of an intent is no plain value.", remedy="See the docs.")
    try:
        return intent(**value)
    except (ConfigError, TypeError) as error:
        remedy = error.remedy if isinstance(error, ConfigError) else "See the documentation."
        message = error.message if isinstance(error, ConfigError) else str(error)
        raise InvalidRequest(message, remedy=remedy) from error


def _memory(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        for level in get_args(MemoryLevel):
            if word == level:
                return level
        return parse_size(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parsed(value: Any, parse: Callable[[str], Any]) -> Any:
    return parse(value) if isinstance(value, str) else value


def _check_memory(value: object) -> None:
    if value is None or value in get_args(MemoryLevel):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < MINIMUM_MEMORY:
        raise _wrong("memory", value, "Use 1m or more, or low, medium or high.")


def _positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value < math.inf


def _wrong(name: str, value: Any, remedy: str) -> ConfigError:
    return ConfigError(f"An intent's {name} cannot be {value!r}.", remedy=remedy)


NOTHING = Intent()
"""Declares nothing."""
