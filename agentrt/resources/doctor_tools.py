"""Checks of the programs that sandboxes are made with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from agentrt.errors import BackendUnavailable
from agentrt.resources.doctor import Probe
from agentrt.resources.runc import flaws_of, parse_version

__all__ = ["PROBES"]

Answer = tuple[bool, str, str]

SECONDS = 10.0
SOCKET = Path("/var/run/docker.sock")


def _version(program: str, *arguments: str) -> str | None:
    """What the program prints; ``None`` where it is not installed."""
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return done.stdout.strip() or done.stderr.strip()


def _docker() -> Answer:
    if shutil.which("dockerd") is None and shutil.which("docker") is None:
        return False, "not installed", "apt-get install docker.io"
    if "DOCKER_HOST" not in os.environ and not SOCKET.exists():
        return False, f"no engine runs: there is no {SOCKET}", "systemctl start docker"
    from agentrt.sandbox.docker_api import connect

    try:
        client = connect(timeout=5)
    except BackendUnavailable as error:
        return False, error.message, error.remedy
    client.close()
    return True, "an engine answers", ""


def _runc() -> Answer:
    said = _version("runc", "--version")
    if said is None:
        return False, "not installed", "apt-get install runc"
    version = parse_version(said)
    if version is None:
        return False, f"version not understood: {said.splitlines()[0]}", "apt-get install runc"
    found = said.splitlines()[0]
    flaws = flaws_of(version)
    if not flaws:
        return True, f"{found}: no known escape", ""
    listed = "; ".join(f"{flaw.name} ({flaw.what})" for flaw in flaws)
    remedy = "apt-get update && apt-get install --only-upgrade runc, or 1.2.8, 1.3.3 or newer."
    return False, f"{found}: {listed}", remedy


def _bubblewrap() -> Answer:
    said = _version("bwrap", "--version")
    if said is None:
        return False, "not installed", "apt-get install bubblewrap"
    tried = subprocess.run(
        ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "/bin/true"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or ["it failed"])[-1]
        return False, f"{said}: {reason}", "sysctl -w kernel.unprivileged_userns_clone=1"
    return True, said, ""


PROBES = (
    Probe("docker", "containers as sandboxes", _docker),
    Probe("runc", "containers that do not let a tool call out", _runc),
    Probe("bubblewrap", "sandboxes without a container engine", _bubblewrap),
)
