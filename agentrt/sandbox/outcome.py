"""From a result that is not ok to the error that names it."""

from __future__ import annotations

from typing import NoReturn

from agentrt.errors import SandboxError, ToolOutOfMemory, ToolTimeout
from agentrt.sandbox.base import ExecResult

__all__ = ["raise_for"]

TAIL = 500


def raise_for(result: ExecResult) -> NoReturn:
    """Raise the error that says why ``result`` is not ok.

    Raises:
        ToolTimeout, ToolOutOfMemory: by status.
        SandboxError: the command ended with a non-zero exit code, or was killed with its sandbox.
    """
    if result.status == "timeout":
        raise ToolTimeout(
            f"The command was killed after {result.duration:.1f} s, past its time limit.",
            remedy="Give it a longer timeout, or make it do less.",
        )
    if result.status == "out_of_memory":
        raise ToolOutOfMemory(
            f"The kernel killed the command for lack of memory{_peak(result)}.",
            remedy="Give it a higher memory limit, or make it use less.",
        )
    if result.status == "killed":
        raise SandboxError(
            result.feedback.text if result.feedback else "The command was killed.",
            remedy="Declare what it needs with an intent, or make it use less.",
        )
    if result.status == "cancelled":
        raise SandboxError("The command was cancelled.", remedy="Run it again if you need it.")
    tail = result.stderr[-TAIL:].decode(errors="replace").strip()
    said = f": {tail}" if tail else ""
    raise SandboxError(
        f"The command ended with exit code {result.exit_code}{said}.",
        remedy="Look at its output; do not call check() where a non-zero exit is an answer.",
    )


def _peak(result: ExecResult) -> str:
    peak = result.resources.peak_memory
    return f" (peak {peak / (1 << 20):.0f} MiB)" if peak is not None else ""
