"""What the agent is shown of a command: bounded text, the same for the same result."""

from __future__ import annotations

from agentrt.sandbox.base import ExecResult

__all__ = ["OBSERVATION_BOUND", "clip", "observation"]

OBSERVATION_BOUND = 1500
"""Characters of output that are shown; the rest is left out of the middle."""


def clip(text: str, bound: int = OBSERVATION_BOUND) -> str:
    """Return ``text`` with its middle left out, and said so, if it is longer than ``bound``."""
    if len(text) <= bound:
        return text
    head = bound * 2 // 3
    left_out = len(text) - bound
    tail = text[head + left_out :]
    return f"{text[:head]}\n[... {left_out} characters left out ...]\n{tail}"


def observation(done: ExecResult) -> str:
    """Return how the command ended and what it printed, standard output before standard error."""
    ending = f"exit code: {done.exit_code}"
    if done.status == "timeout":
        ending = f"killed: it ran longer than its time limit ({done.duration:.0f} seconds)"
    elif done.status == "out_of_memory":
        ending = "killed: it used more memory than its limit"
    elif done.status == "cancelled":
        ending = "cancelled"
    text = (done.stdout + done.stderr).decode("utf-8", errors="replace").strip("\n")
    return f"{ending}\n{clip(text)}".rstrip("\n")
