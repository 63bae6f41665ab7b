"""agentrt: serve AI agents as whole programs on one machine.

Importing this loads neither torch nor docker nor a web framework; each name is loaded when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentrt import errors

if TYPE_CHECKING:
    from agentrt.engine.params import SamplingParams
    from agentrt.lifecycle import ProgramState
    from agentrt.program import ChatStream, Program, TurnResult
    from agentrt.resources.intent import Intent, intent
    from agentrt.runtime import Runtime, RuntimeConfig
    from agentrt.sandbox.base import ExecResult, Limits, Sandbox, SandboxSpec

__version__ = "0.1.0"

__all__ = [
    "ChatStream",
    "ExecResult",
    "Intent",
    "Limits",
    "Program",
    "ProgramState",
    "Runtime",
    "RuntimeConfig",
    "SamplingParams",
    "Sandbox",
    "SandboxSpec",
    "TurnResult",
    "errors",
    "intent",
]

_HOMES = {
    "ChatStream": "agentrt.program",
    "ExecResult": "agentrt.sandbox.base",
    "Intent": "agentrt.resources.intent",
    "Limits": "agentrt.sandbox.base",
    "Program": "agentrt.program",
    "ProgramState": "agentrt.lifecycle",
    "Runtime": "agentrt.runtime",
    "RuntimeConfig": "agentrt.runtime",
    "SamplingParams": "agentrt.engine.params",
    "Sandbox": "agentrt.sandbox.base",
    "SandboxSpec": "agentrt.sandbox.base",
    "TurnResult": "agentrt.program",
    "intent": "agentrt.resources.intent",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'agentrt' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
