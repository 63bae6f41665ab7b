"""The ``process`` kind: plain processes in a private directory. It does not confine.

For work that one trusts as one's own: a tool call can read and write whatever its user can, and
reach the network. What it still gives is a cgroup per call with its limits, and a clean end.
"""

from __future__ import annotations

from pathlib import Path

from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.common import Call
from agentrt.sandbox.host import Host
from agentrt.sandbox.launcher import die_with_parent, joined_command
from agentrt.sandbox.local import PATH, LocalSandbox
from agentrt.sandbox.provider import CommonProvider, fill

__all__ = ["ProcessProvider", "ProcessSandbox"]

REMEDY = "Use --sandbox bubblewrap or docker for work that is not yours."


class ProcessSandbox(LocalSandbox):
    """A private directory for trusted work; commands see the whole machine."""

    kind = "process"

    def __init__(self, sandbox_id: str, spec: SandboxSpec, host: Host) -> None:
        top = host.directory(sandbox_id)
        self._tmp = str(top / "tmp")
        places = {str(top / "work"): top / "work", self._tmp: top / "tmp"}
        super().__init__(sandbox_id, str(top / "work"), spec, host, places)

    def _always_unenforced(self) -> tuple[str, ...]:
        if self._spec.network == "host":
            return ()
        return (f"network: the process kind does not confine. {REMEDY}",)

    def _environment(self, call: Call) -> dict[str, str]:
        own = {"PATH": PATH, "HOME": self._tmp, "TMPDIR": self._tmp, "LANG": "C.UTF-8"}
        return {**own, **call.env}

    def _command_line(self, call: Call, procs: tuple[Path, ...]) -> tuple[list[str], bytes | None]:
        argv = joined_command(procs, call.command, call.cwd, call.word, call.oom_score)
        return die_with_parent(argv), None


class ProcessProvider(CommonProvider):
    """Makes ``process`` sandboxes."""

    kind = "process"
    open_gaps = (
        ("filesystem", f"commands see and change all that your user can. {REMEDY}"),
        ("network", f"commands reach all that your user can. {REMEDY}"),
    )

    async def _obstacle(self) -> tuple[str, str] | None:
        return None

    async def _make(self, spec: SandboxSpec, host: Host) -> ProcessSandbox:
        sandbox_id = host.sandbox_id()
        await fill(spec, host, sandbox_id)
        return ProcessSandbox(sandbox_id, spec, host)
