"""The ``bubblewrap`` kind: namespaces of its own for every tool call, no daemon, no image.

Inside there is the host's ``/usr`` read-only, a few harmless files of ``/etc``, a private ``/tmp``
and ``/proc``, and the work directory; no network unless asked for, no capability, no other user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anyio import to_thread

from agentrt.errors import ConfigError
from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.common import Call
from agentrt.sandbox.host import Host
from agentrt.sandbox.launcher import EXTRA, inner_argv, joined_argv
from agentrt.sandbox.local import PATH, LocalSandbox
from agentrt.sandbox.provider import CommonProvider, fill
from agentrt.sandbox.state import ENV_TOOL, RunState

__all__ = ["INSTALL", "BubblewrapProvider", "BubblewrapSandbox", "View", "bwrap_options"]

INSTALL = "Install bubblewrap: apt-get install bubblewrap"
WORK = "/work"
IDENTITY = "1000"

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
ETC_NETWORK = ("hosts", "nsswitch.conf", "resolv.conf", "gai.conf")
OWN_ETC = {
    "passwd": f"root:x:0:0::/root:/bin/sh\nagent:x:{IDENTITY}:{IDENTITY}::/tmp:/bin/sh\n",
    "group": f"root:x:0:\nagent:x:{IDENTITY}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}


@dataclass(frozen=True, slots=True)
class View:
    """What shows inside: host directories by place, the network, and whether user namespaces work.

    ``top`` is the sandbox's directory with ``work``, ``tmp`` and ``etc``.
    """

    top: Path
    host_network: bool = False
    readable: tuple[Path, ...] = ()
    disable_userns: bool = False


def bwrap_options(view: View, env: Sequence[tuple[str, str]], root: Path = Path("/")) -> list[str]:
    """The options of ``bwrap`` for one tool call. Reads which system directories are links."""
    options = ["--unshare-user", "--uid", IDENTITY, "--gid", IDENTITY]
    options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += [] if view.host_network else ["--unshare-net"]
    options += ["--disable-userns"] if view.disable_userns else []
    options += ["--hostname", "sandbox", "--die-with-parent", "--new-session"]
    options += ["--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        place = root / name[1:]
        if place.is_symlink():
            options += ["--symlink", os.readlink(place), name]
        elif place.is_dir():
            options += ["--ro-bind", name, name]
    options += _etc(view)
    options += ["--proc", "/proc", "--dev", "/dev", "--bind", str(view.top / "tmp"), "/tmp"]
    for path in view.readable:
        options += ["--ro-bind", str(path), str(path)]
    options += ["--bind", str(view.top / "work"), WORK, "--remount-ro", "/", "--chdir", "/"]
    options += ["--clearenv"]
    for name, value in env:
        options += ["--setenv", name, value]
    return options


def _etc(view: View) -> list[str]:
    options: list[str] = []
    own = [name for name in OWN_ETC if not (view.host_network and name in ETC_NETWORK)]
    for name in (*ETC, *(ETC_NETWORK if view.host_network else ())):
        options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in own:
        options += ["--ro-bind", str(view.top / "etc" / name), f"/etc/{name}"]
    return options


class BubblewrapSandbox(LocalSandbox):
    """A work directory; every tool call gets namespaces of its own over it."""

    kind = "bubblewrap"
    spare_pids = 2
    """bwrap itself and the first process of the pid namespace."""

    def __init__(
        self, sandbox_id: str, spec: SandboxSpec, host: Host, binary: str, view: View
    ) -> None:
        places = {WORK: view.top / "work", "/tmp": view.top / "tmp"}
        super().__init__(sandbox_id, WORK, spec, host, places)
        self._binary = binary
        self._view = view

    def _offline_unenforced(self, call: Call) -> tuple[str, ...]:
        return ()  # every call has namespaces of its own

    def _environment(self, call: Call) -> dict[str, str]:
        # The caller's variables must not reach what runs outside: LD_PRELOAD would leave the box.
        return {"PATH": PATH}

    def _command_line(self, call: Call, procs: tuple[Path, ...]) -> tuple[list[str], bytes | None]:
        own = {"PATH": PATH, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
        marker = {ENV_TOOL: self._host.marker(self.sandbox_id, call.tool)}
        view = replace(self._view, host_network=False) if call.offline else self._view
        options = bwrap_options(view, list({**own, **call.env, **marker}.items()))
        inner = inner_argv(call.command, call.cwd, call.word)
        argv = joined_argv(
            procs, [self._binary, "--args", str(EXTRA), "--", *inner], call.oom_score
        )
        # By descriptor, not by argument: other users read a command line, and it has a size limit.
        return argv, b"".join(option.encode() + b"\0" for option in options)


class BubblewrapProvider(CommonProvider):
    """Makes ``bubblewrap`` sandboxes."""

    kind = "bubblewrap"
    confines = ("filesystem", "network")

    def __init__(self, state: RunState | None = None, *, binary: str | None = None) -> None:
        super().__init__(state)
        self._binary = binary or shutil.which("bwrap")
        self._can_disable_userns: bool | None = None

    async def _obstacle(self) -> tuple[str, str] | None:
        if self._binary is None:
            return "the bwrap program is not installed", INSTALL
        return None

    async def _make(self, spec: SandboxSpec, host: Host) -> BubblewrapSandbox:
        if self._binary is None:
            raise ConfigError("The bwrap program is not installed.", remedy=INSTALL)
        if self._can_disable_userns is None:
            self._can_disable_userns = await to_thread.run_sync(_knows_disable, self._binary)
        sandbox_id = host.sandbox_id()
        await fill(spec, host, sandbox_id)
        top = host.directory(sandbox_id)
        await to_thread.run_sync(_write_etc, top)
        view = View(top, spec.network == "host", spec.readable, self._can_disable_userns)
        return BubblewrapSandbox(sandbox_id, spec, host, self._binary, view)


def _knows_disable(binary: str) -> bool:
    """Whether this version of bwrap can forbid user namespaces inside (0.8 and later)."""
    try:
        done = subprocess.run([binary, "--help"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"--disable-userns" in done.stdout


def _write_etc(top: Path) -> None:
    (top / "etc").mkdir()
    for name, content in OWN_ETC.items():
        (top / "etc" / name).write_text(content)
