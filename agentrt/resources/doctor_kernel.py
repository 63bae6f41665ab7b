"""Checks of the kernel and its cgroups."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

from agentrt.resources.cgroup import CONTROLLERS, CgroupTree, read_layout
from agentrt.resources.doctor import Probe

__all__ = ["PROBES"]

Answer = tuple[bool, str, str]

OLDEST = (5, 14)
UNIFIED = "Boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all."
DELEGATE = (
    "Run as root, or: systemd-run --user --pty -p Delegate=yes -p DelegateSubgroup=main -- COMMAND"
)
SWAP_ON_ZRAM = "modprobe zram && d=$(zramctl --find --size 4G) && mkswap $d && swapon $d"
PRESSURE = Path("/proc/pressure/memory")


def _kernel() -> Answer:
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return version >= OLDEST, release, "Install a newer kernel: 5.14, better 6.1."


def _cgroup_mode() -> Answer:
    layout = read_layout()
    v1 = sorted({name for h in layout.hierarchies if h.version == 1 for name in h.controllers})
    names = ", ".join(name for name in v1 if "=" not in name)
    found = {
        "v2": "cgroup v2",
        "hybrid": f"hybrid: {names} on v1, with a v2 tree for freeze, kill, pressure and BPF",
        "v1": f"cgroup v1 only: {names}",
        "none": "no cgroups are mounted",
    }[layout.kind]
    return layout.kind == "v2", found, UNIFIED


def _delegation() -> Answer:
    # A run of its own, made and removed again: whether we may is tried, not read off.
    tree = CgroupTree(f"doctor-{os.getpid()}", read_layout())
    tree.open()
    try:
        places = [str(branch.base) for branch in tree.branches]
    finally:
        tree.close()
    found = f"cgroups can be made below {', '.join(places)}" if places else "no cgroup can be made"
    return bool(places), found, DELEGATE


def _controllers() -> Answer:
    layout = read_layout()
    offered = {name for name in CONTROLLERS if layout.v1(name)}
    if layout.v2 is not None:
        file = layout.v2.own / "cgroup.controllers"
        offered |= set(file.read_text().split()) & set(CONTROLLERS) if file.exists() else set()
    missing = [name for name in CONTROLLERS if name not in offered]
    if not missing:
        return True, ", ".join(CONTROLLERS), ""
    remedy = f"Have {', '.join(missing)} delegated (systemd: Delegate=yes), or run as root."
    return False, f"missing: {', '.join(missing)}", remedy


def _psi() -> Answer:
    try:
        fd = os.open(PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, "no pressure files", "Boot a kernel with CONFIG_PSI=y and psi=1."
    except PermissionError:
        return False, "readable, but no triggers", "Run as root, or have a cgroup delegated."
    try:
        os.write(fd, b"some 50000 500000\0")
        select.poll().register(fd, select.POLLPRI)
    except OSError as error:
        slow = f"triggers only with windows of 2 s ({error.strerror})"
        return False, slow, "Run with CAP_SYS_RESOURCE for windows of half a second."
    finally:
        os.close(fd)
    return True, "triggers with a window of 500 ms", ""


def _swap() -> Answer:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    found = ", ".join(line.split()[0] for line in lines) or "no swap"
    return bool(lines), found, SWAP_ON_ZRAM


PROBES = (
    Probe("kernel", "killing a whole tool call at once (cgroup.kill)", _kernel),
    Probe(
        "cgroup v2", "memory.high, reclaim, oom.group and cpu.weight per tool call", _cgroup_mode
    ),
    Probe("delegation", "a cgroup for each tool call", _delegation),
    Probe("controllers", "limits of memory, CPU and processes", _controllers),
    Probe("pressure", "reacting to stalls within half a second (PSI)", _psi),
    Probe("swap", "moving the idle memory of frameworks out of the way", _swap),
)
