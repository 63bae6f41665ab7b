"""Every field that is read: where it stands, what it says, how it is written.

The order of the rows is precedence: of the rows with the same target, the first that holds a usable
value wins (of flags: any that says yes). Sources: ``docs/hints.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.hints.values import (
    Convert,
    cache_control,
    duration,
    flag,
    label,
    name,
    number,
    retention_directives,
    reuse_hint,
    whole,
)

__all__ = ["FIELDS", "PRIORITY", "Field", "Json", "Target", "at"]

Json: TypeAlias = Mapping[str, Any]
Target: TypeAlias = Literal[
    "program",
    "parent",
    "member",
    "parent_member",
    "agent",
    "step",
    "next_tool",
    "last_tool",
    "last",
    "priority",
    "turn_deadline",
    "program_deadline",
    "output_tokens",
    "gap_seconds",
    "remaining_turns",
    "keep_seconds",
    "none",
]
"""What a field speaks of; ``none``: it is known, and nothing is done about it yet."""

PRIORITY = 100
MAX_JSON = 4096
MAX_DEADLINE = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Field:
    """One place in a request. ``read`` returns what stands there, None if nothing does."""

    label: str
    target: Target
    read: Callable[[Json, Json], Any]
    convert: Convert
    note: str = ""


def at(*path: str) -> Callable[[Json, Json], Any]:
    """Return a reader of one body field."""

    def read(body: Json, headers: Json) -> Any:
        del headers
        found: Any = body
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    return read


def _body(path: str, target: Target, convert: Convert, note: str = "") -> Field:
    return Field("body:" + path, target, at(*path.split(".")), convert, note)


def _header(header: str, target: Target, convert: Convert = name, note: str = "") -> Field:
    def read(body: Json, headers: Json) -> Any:
        del body
        return headers.get(header) or None  # an empty header counts as absent

    return Field("header:" + header, target, read, convert, note)


def _inside(text: Any, key: str) -> Any:
    """Return a key of a JSON object that is written as text; None if it is something else."""
    if not isinstance(text, str) or not text.startswith("{") or len(text) > MAX_JSON:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get(key) if isinstance(found, Mapping) else None


def _session_in_user_id(body: Json, headers: Json) -> Any:
    return _inside(at("metadata", "user_id")(body, headers), "session_id")


def _agent_in_codex_metadata(body: Json, headers: Json) -> Any:
    del body
    return _inside(headers.get("x-codex-turn-metadata"), "agent_name")


def _agentic_context(body: Json, headers: Json) -> Any:
    for extra in ("vllm_xargs", "extra_args"):
        found = at(extra, "agentic_context")(body, headers)
        if isinstance(found, Mapping):
            return found.get("program_id") or found.get("program") or found.get("session_id")
        if found is not None:
            return found
    return None


def _xargs(key: str, target: Target, convert: Convert) -> list[Field]:
    """Return the rows of an extra argument, under vLLM's name for them and under the older one."""
    return [_extra(extra, key, target, convert) for extra in ("vllm_xargs", "extra_args")]


def _extra(extra: str, key: str, target: Target, convert: Convert) -> Field:
    plain = at(extra, key)

    def read(body: Json, headers: Json) -> Any:
        found = plain(body, headers)
        return None if found == "" else found  # they are scalars: an empty one says nothing

    return Field(f"body:{extra}.{key}", target, read, convert)


_PRIORITY = whole(-PRIORITY, PRIORITY)
_LOWER_FIRST = whole(-PRIORITY, PRIORITY, scale=-1)
_TOKENS = whole(1, 1 << 20)
_TURNS = whole(0, 10_000)
_GAP = number(0.0, 3600.0)
_GAP_MS = number(0.0, 3600.0, scale=0.001)
_DEADLINE = number(0.0, MAX_DEADLINE)

FIELDS: tuple[Field, ...] = (
    # --- the program, in the order of the places: body, extra arguments, headers, single clients
    _body("program_id", "program", name),
    _body("job_id", "program", name),
    _body("session_id", "program", name),
    _body("agent_hint.session_id", "program", name),
    _body("agent_hints.workflow_id", "program", name),
    _body("nvext.agent_context.program_id", "program", name),
    _body("nvext.agent_context.session_id", "program", name),
    _body("agentrt.program", "program", name),
    _body("vllm_xargs.job_id", "program", name),
    _body("extra_args.job_id", "program", name),
    Field("body:vllm_xargs.agentic_context", "program", _agentic_context, name),
    _header("x-dynamo-session-id", "program"),
    _header("x-claude-code-session-id", "program"),
    _header("thread-id", "program", note="codex"),
    _header("session-id", "program", note="codex, older"),
    _header("x-session-id", "program", note="opencode and others"),
    _header("x-litellm-session-id", "program"),
    _header("x-session-affinity", "program"),
    _header("x-correlation-id", "program"),
    _body("client_metadata.thread_id", "program", name, "codex"),
    _body("client_metadata.session_id", "program", name, "codex"),
    Field(
        "body:metadata.user_id",
        "program",
        _session_in_user_id,
        name,
        "only `session_id` in a JSON object written as text (claude-code)",
    ),
    # --- whose child it is
    _body("agent_hint.parent_session_id", "parent", name),
    _body("nvext.agent_context.parent_session_id", "parent", name),
    _body("nvext.agent_context.parent_program_id", "parent", name),
    _body("agentrt.parent", "parent", name),
    _header("x-dynamo-parent-session-id", "parent"),
    _header("x-codex-parent-thread-id", "parent"),
    _header("x-parent-session-id", "parent", note="opencode"),
    _header("x-claude-code-agent-id", "member"),
    _header("x-claude-code-parent-agent-id", "parent_member"),
    _body("agentrt.agent", "agent", label),
    _body("agent_hints.agent_id", "agent", name),
    Field(
        "header:x-codex-turn-metadata",
        "agent",
        _agent_in_codex_metadata,
        label,
        "only `agent_name` in its JSON object",
    ),
    # --- where the program stands, and what follows
    _body("agentrt.step", "step", label),
    _body("agent_hints.step_id", "step", name),
    _body("agentrt.next_tool", "next_tool", label, "`read`, or `bash:test` with a command kind"),
    *_xargs("this_func_call", "next_tool", label),
    _body("agentrt.last_tool", "last_tool", label),
    *_xargs("last_func_call", "last_tool", label),
    _body("agentrt.last", "last", flag),
    *_xargs("is_last_step", "last", flag),
    _header("x-dynamo-session-final", "last", flag),
    _body("agentrt.remaining_turns", "remaining_turns", _TURNS),
    _body("agentrt.output_tokens", "output_tokens", _TOKENS),
    _body("nvext.agent_hints.osl", "output_tokens", _TOKENS),
    _body("agentrt.gap_s", "gap_seconds", _GAP),
    _body("agent_hints.expected_tool_duration_ms", "gap_seconds", _GAP_MS, "milliseconds"),
    # --- how urgent
    _body("agentrt.priority", "priority", _PRIORITY),
    _body("nvext.agent_hints.priority", "priority", _PRIORITY),
    _header("x-dynamo-request-priority", "priority", _PRIORITY),
    _body("nvext.agent_hints.strict_priority", "priority", _PRIORITY),
    _body("priority", "priority", _LOWER_FIRST, "as vLLM and LiteLLM: **lower** goes first"),
    _body("agentrt.deadline_s", "turn_deadline", _DEADLINE, "seconds from the request on"),
    _body("agentrt.program_deadline_s", "program_deadline", _DEADLINE, "the same"),
    # --- how long to keep its KV
    _body("agentrt.ttl_s", "keep_seconds", duration),
    _body("agent_hints.cache_ttl_ms", "keep_seconds", number(0.0, 3600.0, 0.001), "milliseconds"),
    _body("agent_hints.reuse_hint", "keep_seconds", reuse_hint, "`discard`: 0; `keep`, `neutral`"),
    _body("agent_hint.cache_control", "keep_seconds", cache_control),
    _body("nvext.cache_control", "keep_seconds", cache_control),
    _body("cache_control", "keep_seconds", cache_control, '`{"type": "ephemeral", "ttl": "5m"}`'),
    _body(
        "kv_transfer_params.lmcache_retention_ttl_sec", "keep_seconds", duration, "LMCache #4456"
    ),
    _body("retention_directives", "keep_seconds", retention_directives, "the longest `duration`"),
    # --- known, and without effect
    _body("nvext.agent_hints.speculative_prefill", "none", flag),
    _body("nvext.agent_hints.latency_sensitivity", "none", number(0.0, 1e9)),
    _body("nvext.agent_hints.prefix_id", "none", name),
    _body("nvext.agent_hints.total_requests", "none", _TURNS),
    _body("nvext.agent_context.trajectory_id", "none", name),
    _body("agent_hints.parent_step_id", "none", name),
    _body("retention_scope", "none", label),
)
