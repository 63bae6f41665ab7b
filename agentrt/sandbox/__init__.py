"""Sandboxes: where tool calls run, each in a cgroup of its own.

Must not know programs, turns or engines. Importing this loads no container client.
"""

from agentrt.sandbox.base import (
    ExecResult,
    ExecStatus,
    Limits,
    Probe,
    ResourceUsage,
    Sandbox,
    SandboxKind,
    SandboxProvider,
    SandboxSpec,
)
from agentrt.sandbox.choose import KINDS, Choice, choose, make_provider, reap_containers
from agentrt.sandbox.reaper import ReapReport, reap
from agentrt.sandbox.state import RunState, state_directory

__all__ = [
    "KINDS",
    "Choice",
    "ExecResult",
    "ExecStatus",
    "Limits",
    "Probe",
    "ReapReport",
    "ResourceUsage",
    "RunState",
    "Sandbox",
    "SandboxKind",
    "SandboxProvider",
    "SandboxSpec",
    "choose",
    "make_provider",
    "reap",
    "reap_containers",
    "state_directory",
]
