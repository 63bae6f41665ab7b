"""Tracing one tool call on demand with bcc: its stacks, block I/O and files. Nothing depends on it.

bcc comes from the distribution (``python3-bpfcc``; the PyPI project of that name is another one),
compiles on the spot and needs kernel headers. It runs under the distribution's Python, as a child.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.errors import BackendUnavailable, ConfigError
from agentrt.resources.cgroup import PARENT, Layout, read_layout

__all__ = ["Trace", "find_tool_call", "system_bcc", "trace"]

PYTHON = Path("/usr/bin/python3")
PLACES = (
    Path("/usr/lib/python3/dist-packages"),
    Path("/usr/lib/python3/site-packages"),
    Path("/usr/lib64/python3/site-packages"),
)
SCRIPT = Path(__file__).with_name("trace_bcc.py")
INSTALL = (
    "Install it: apt-get install python3-bpfcc linux-headers-$(uname -r). "
    "Not with pip: that bcc is another project."
)
GRACE_SECONDS = 60.0
"""For compiling and loading, beside the time that is traced."""


def system_bcc(places: tuple[Path, ...] = PLACES) -> Path | None:
    """The distribution's bcc package, if it is there: it has ``bcc/__init__.py`` and a ``BPF``."""
    for place in places:
        package = place / "bcc" / "__init__.py"
        if package.exists() and "class BPF" in package.read_text(errors="replace"):
            return package.parent
    return None


@dataclass(frozen=True, slots=True)
class Trace:
    """Files opened and how often, bytes of block I/O, sampled stacks and how often."""

    cgroup: str
    seconds: float
    files: dict[str, int]
    block_bytes: dict[str, int]
    stacks: dict[str, int]


def find_tool_call(name: str, layout: Layout | None = None) -> Path:
    """The v2 directory of a running tool call: a path, ``tool-3``, or ``SANDBOX/tool-3``.

    Raises:
        ConfigError: no tool call or more than one is called so.
    """
    v2 = (layout if layout is not None else read_layout()).v2
    if v2 is None:
        raise ConfigError("No cgroup v2 tree is mounted.", remedy="See agentrt doctor.")
    if Path(name).is_absolute() and Path(name).is_relative_to(v2.mount) and Path(name).is_dir():
        return Path(name)
    found = [path for path in _below(v2.mount) if f"/{path}".endswith(f"/{name.strip('/')}")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"No running tool call is called {name!r}.",
            remedy=f"List them: find {v2.mount} -path '*{PARENT}/*' -name 'tool-*'.",
        )
    listed = ", ".join(map(str, found[:5]))
    raise ConfigError(f"{name!r} is not unique: {listed}.", remedy="Give more of the path.")


def _below(mount: Path) -> Iterator[Path]:
    for parent in sorted(mount.rglob(PARENT)):
        if parent.is_dir():
            yield from (path for path in sorted(parent.rglob("tool-*")) if path.is_dir())


def trace(directory: Path, seconds: float) -> Trace:
    """Watch the cgroup for ``seconds``. Blocking.

    Raises:
        BackendUnavailable: bcc is not installed or does not work here, with its own words.
    """
    if system_bcc() is None:
        raise BackendUnavailable("bcc is not installed.", remedy=INSTALL)
    raw = _run(directory.stat().st_ino, seconds)
    return Trace(str(directory), seconds, raw["files"], raw["block_bytes"], raw["stacks"])


def _run(cgroup_id: int, seconds: float) -> dict[str, Any]:
    command = [str(PYTHON), str(SCRIPT), str(cgroup_id), str(seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"bcc does not run: {error}.", remedy=INSTALL) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "headers" in line), lines[-1] if lines else "?")
        raise BackendUnavailable(f"bcc does not work here: {reason.strip()}.", remedy=INSTALL)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
