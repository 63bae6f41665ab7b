"""Who is calling: the program a request names, and its hints. Pure; knows no HTTP library.

A request may name its program in several places. The table ``SOURCES`` lists them in order; the
first that holds a usable name wins. A request that names none is placed by its message prefix
(``agentrt.serving.contexts``). Names and hints are advisory: a malformed one is counted and
ignored, it never fails a request, and it never changes a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["SOURCES", "Identity", "identify", "scoped_id"]

Json: TypeAlias = Mapping[str, Any]

MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request says about itself.

    ``program`` is the name it gave its program, or None; ``source`` says where that stood (a label
    of ``SOURCES``, or ``"none"``). ``next_tool`` is the tool that will run after this turn;
    ``last`` says that the program ends with this turn. ``malformed`` holds the labels of the
    fields that were there and not usable.
    """

    program: str | None = None
    source: str = "none"
    next_tool: str | None = None
    last: bool = False
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One place where a program may be named; ``read`` returns what stands there, or None."""

    label: str
    read: Callable[[Json, Json], Any]


def _at(*path: str) -> Callable[[Json, Json], Any]:
    """Return a reader of one body field."""

    def read(body: Json, headers: Json) -> Any:
        del headers
        found: Any = body
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    return read


def _header(name: str) -> Callable[[Json, Json], Any]:
    """Return a reader of one header; an empty header counts as absent."""

    def read(body: Json, headers: Json) -> Any:
        del body
        return headers.get(name) or None

    return read


def _session_in_user_id(body: Json, headers: Json) -> Any:
    """Read ``session_id`` out of ``metadata.user_id`` where that is a JSON object; else None."""
    text = _at("metadata", "user_id")(body, headers)
    if not isinstance(text, str) or not text.startswith("{"):
        return None  # an ordinary user id: never identity
    try:
        return _at("session_id")(json.loads(text), {})
    except ValueError:
        return None


def _agentic_context(body: Json, headers: Json) -> Any:
    """Read ``agentic_context``: a name, or an object that holds one."""
    for extra in ("vllm_xargs", "extra_args"):
        found = _at(extra, "agentic_context")(body, headers)
        if isinstance(found, Mapping):
            return found.get("program_id") or found.get("program") or found.get("session_id")
        if found is not None:
            return found
    return None


def _body_source(*path: str) -> Source:
    return Source("body:" + ".".join(path), _at(*path))


def _header_source(name: str) -> Source:
    return Source("header:" + name, _header(name))


SOURCES: tuple[Source, ...] = (
    # 1: the body says it
    _body_source("program_id"),
    _body_source("job_id"),
    _body_source("session_id"),
    _body_source("agent_hint", "session_id"),
    _body_source("agent_hints", "workflow_id"),
    _body_source("nvext", "agent_context", "program_id"),
    _body_source("nvext", "agent_context", "session_id"),
    # 2: extra arguments
    _body_source("vllm_xargs", "job_id"),
    _body_source("extra_args", "job_id"),
    Source("body:vllm_xargs.agentic_context", _agentic_context),
    # 3: the canonical header
    _header_source("x-dynamo-session-id"),
    # 4: headers that agents send by themselves
    _header_source("x-claude-code-session-id"),
    _header_source("thread-id"),
    _header_source("session-id"),
    _header_source("x-session-id"),
    _header_source("x-litellm-session-id"),
    _header_source("x-session-affinity"),
    _header_source("x-correlation-id"),
    # 5: body fields of single clients
    _body_source("client_metadata", "thread_id"),
    _body_source("client_metadata", "session_id"),
    Source("body:metadata.user_id", _session_in_user_id),
)


def identify(body: Json, headers: Json) -> Identity:
    """Return what ``body`` and ``headers`` (lower-case names) say about the calling program.

    Never raises: what is malformed is listed in the result and otherwise ignored.
    """
    malformed: list[str] = []
    program, source = _first_name(body, headers, malformed)
    next_tool = _next_tool(body, malformed)
    last = any(_last_flags(body, headers, malformed))
    return Identity(program, source, next_tool, last, tuple(malformed))


def scoped_id(tenant: str, program: str) -> str:
    """Return an id that is unique over all tenants: equal names of two tenants never meet."""
    return f"{tenant.replace('%', '%25').replace('/', '%2F')}/{program}"


def _first_name(body: Json, headers: Json, malformed: list[str]) -> tuple[str | None, str]:
    for source in SOURCES:
        found = source.read(body, headers)
        if found is None:
            continue
        name = _usable_name(found)
        if name is not None:
            return name, source.label
        malformed.append(source.label)
    return None, "none"


def _usable_name(value: Any) -> str | None:
    """Return ``value`` as a name: a short printable string, or an integer written out."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    name = value.strip()
    return name if 0 < len(name) <= MAX_NAME and name.isprintable() else None


def _next_tool(body: Json, malformed: list[str]) -> str | None:
    for extra in ("vllm_xargs", "extra_args"):
        found = _at(extra, "this_func_call")(body, {})
        if found is None or found == "":
            continue
        name = _usable_name(found) if isinstance(found, str) else None
        if name is not None:
            return name
        malformed.append(f"body:{extra}.this_func_call")
    return None


def _last_flags(body: Json, headers: Json, malformed: list[str]) -> Iterator[bool]:
    """Yield each statement of whether this is the program's last turn."""
    places: tuple[tuple[str, Any], ...] = (
        ("body:vllm_xargs.is_last_step", _at("vllm_xargs", "is_last_step")(body, headers)),
        ("body:extra_args.is_last_step", _at("extra_args", "is_last_step")(body, headers)),
        ("header:x-dynamo-session-final", _header("x-dynamo-session-final")(body, headers)),
    )
    for label, found in places:
        if found is None:
            continue
        flag = _flag(found)
        if flag is None:
            malformed.append(label)
        yield bool(flag)


def _flag(value: Any) -> bool | None:
    """Return a yes or no written as a boolean, 0 or 1, or a word; None if it is neither."""
    words = {"true": True, "1": True, "false": False, "0": False}
    return words.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
