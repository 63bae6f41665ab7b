"""A step's command: in a sandbox, under the step's limits, its inputs as files, its output as data.

Parameters reach the command through its environment, so no value of theirs can change what runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from agentrt.workflows.data import DataStore, Handle
from agentrt.workflows.executor_context import Calls
from agentrt.workflows.guide import Step
from agentrt.workflows.prompt import clip, environment_form

if TYPE_CHECKING:
    from agentrt.sandbox.base import ExecResult, Sandbox, SandboxSpec

__all__ = ["CommandDone", "run_command"]

SHOWN = 4000
"""Characters of a command's output that its evidence carries."""


@dataclass(frozen=True, slots=True)
class CommandDone:
    """A command that ended with exit code 0.

    ``values`` are what conditions may name after ``command.``: ``exit_code``, ``stdout``, and the
    keys of the JSON object that it printed, if it did. ``warnings`` are limits that this machine
    could not set.
    """

    values: dict[str, Any]
    evidence: str
    warnings: tuple[str, ...]


async def run_command(
    step: Step,
    values: Mapping[str, str],
    inputs: Mapping[str, Handle],
    *,
    make: Callable[[SandboxSpec], Awaitable[Sandbox]],
    store: DataStore | None,
    image: str | None,
    calls: Calls,
) -> CommandDone:
    """Run the step's command; ``inputs`` are files ``data/NAME.csv`` of its work directory.

    Raises:
        SandboxError: it could not be started, ran out of time or memory, or failed.
        SandboxUnavailable: there is no sandbox.
    """
    command = environment_form(step.command or "", list(values))
    policy = step.policy
    limits = {"memory": policy.memory, "cpu": policy.cpu, "pids": policy.pids}
    request = {
        "command": command,
        "environment": dict(values),
        "inputs": {name: handle.digest for name, handle in inputs.items()},
        "limits": limits,
        "network": policy.network,
        "timeout": policy.timeout,
    }
    live = partial(_run, step, command, values, inputs, make, store, image)
    outcome = await calls.call("tool_called", request, live)
    text = outcome["stdout"]
    evidence = f"Command ended with exit code {outcome['exit_code']}:\n{clip(text, SHOWN)}"
    printed = _printed(text)
    known = {**printed, "exit_code": outcome["exit_code"], "stdout": clip(text, SHOWN)}
    return CommandDone(known, evidence, tuple(outcome["unenforced"]))


async def _run(
    step: Step,
    command: str,
    values: Mapping[str, str],
    inputs: Mapping[str, Handle],
    make: Callable[[SandboxSpec], Awaitable[Sandbox]],
    store: DataStore | None,
    image: str | None,
) -> dict[str, Any]:
    from agentrt.sandbox.base import Limits, SandboxSpec

    policy = step.policy
    spec = SandboxSpec(
        image=image,
        network=policy.network,
        limits=Limits(policy.memory, policy.cpu, policy.pids),
    )
    async with await make(spec) as box:
        for name, handle in inputs.items():
            if store is not None:
                data = await anyio.to_thread.run_sync(_exported, store, handle)
                await box.write_file(f"data/{name}.csv", data)
        done = await box.exec(command, env=dict(values), timeout=policy.timeout)
    return _outcome(done.check())


def _exported(store: DataStore, handle: Handle) -> bytes:
    with tempfile.TemporaryDirectory(prefix="agentrt-data-") as folder:
        return store.export(handle, Path(folder) / "table.csv").read_bytes()


def _outcome(done: ExecResult) -> dict[str, Any]:
    return {
        "exit_code": done.exit_code,
        "stdout": clip(done.stdout.decode("utf-8", "replace"), 64_000),
        "stderr": clip(done.stderr.decode("utf-8", "replace"), SHOWN),
        "duration": done.duration,
        "peak_memory": done.resources.peak_memory,
        "cpu_seconds": done.resources.cpu_seconds,
        "unenforced": list(done.unenforced),
    }


def _printed(text: str) -> dict[str, Any]:
    """Return the plain values of a JSON object that the command printed; nothing for other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    plain = (str, int, float, bool, type(None))
    return {key: found for key, found in value.items() if isinstance(found, plain)}
