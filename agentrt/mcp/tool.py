"""The ``exec`` tool: its description for the model, its arguments, its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentrt.errors import AgentRTError, InvalidRequest
from agentrt.resources.hints import tool_call_intent
from agentrt.sandbox.base import ExecResult, Sandbox

__all__ = ["EXEC_TOOL", "run_exec"]

SHOWN = 64 << 10
"""Bytes of each output stream that the model gets."""
DEFAULT_TIMEOUT = 300.0
LONGEST_TIMEOUT = 3600.0

_INTENT: dict[str, Any] = {
    "type": "object",
    "description": "What the command needs. Say it where you know; it is learned otherwise.",
    "properties": {
        "memory": {"type": ["string", "integer"], "description": "as 512m, 2g, low, medium, high"},
        "cpu": {"type": "number", "description": "cores"},
        "pids": {"type": "integer", "description": "processes and threads"},
        "expect": {"type": ["string", "number"], "description": "how long it takes, as 30s"},
        "priority": {"enum": ["low", "normal", "high"]},
        "on_limit": {"enum": ["kill", "freeze", "throttle"]},
        "deadline": {"type": ["string", "number"], "description": "killed after this, as 10m"},
        "network": {"enum": ["none", "host"]},
        "io": {"type": ["string", "integer"], "description": "bytes a second"},
    },
    "additionalProperties": False,
}
EXEC_TOOL: dict[str, Any] = {
    "name": "exec",
    "title": "Run a command",
    "description": (
        "Run a shell command in a sandbox whose files stay between calls. If the answer ends with "
        "a line that begins with [Resource], it says what stopped or slowed the command and what "
        "to do about it."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "the command, as for a shell"},
            "timeout": {"type": "number", "description": "seconds; 300 where nothing is said"},
            "intent": _INTENT,
        },
        "required": ["command"],
    },
}


async def run_exec(sandbox: Sandbox, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run one tool call and return MCP's result: text for the model, and the same as data.

    Raises:
        InvalidRequest: the arguments are not those of the tool.
    """
    intent, rest, notes = tool_call_intent(arguments)
    command, timeout = rest.get("command"), rest.get("timeout", DEFAULT_TIMEOUT)
    if not isinstance(command, str) or not command:
        raise InvalidRequest("command is missing.", remedy='Send {"command": "ls"}.')
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise InvalidRequest("timeout is no positive number.", remedy="Send seconds.")
    try:
        done = await sandbox.exec(
            command,
            timeout=min(float(timeout), LONGEST_TIMEOUT),
            intent=intent,
            output_cap=SHOWN,
        )
    except AgentRTError as error:
        return {"content": [_text(str(error))], "isError": True}
    return {
        "content": [_text(_answer(done, notes))],
        "structuredContent": _data(done),
        "isError": not done.ok,
    }


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _answer(done: ExecResult, notes: tuple[str, ...]) -> str:
    parts = [done.stdout.decode(errors="replace")]
    if done.stderr:
        parts.append(f"[stderr]\n{done.stderr.decode(errors='replace')}")
    if not done.ok:
        code = "" if done.exit_code is None else f", exit code {done.exit_code}"
        parts.append(f"[{done.status.replace('_', ' ')}{code}]")
    parts += [f"[not understood in the intent: {note}]" for note in notes]
    parts += [f"[not enforced: {line}]" for line in done.unenforced]
    if done.feedback is not None and done.feedback.text:
        parts.append(done.feedback.text)
    return "\n".join(part.rstrip("\n") for part in parts if part) or "(no output)"


def _data(done: ExecResult) -> dict[str, Any]:
    return {
        "status": done.status,
        "exit_code": done.exit_code,
        "duration": done.duration,
        "resources": asdict(done.resources),
        "feedback": asdict(done.feedback) if done.feedback is not None else None,
        "unenforced": list(done.unenforced),
    }
