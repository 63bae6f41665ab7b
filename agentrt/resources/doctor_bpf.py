"""Checks of what BPF can do here; each by a real load, none attaches anything."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from agentrt.ebpf import SCX_MINIMUM, BpfObject, library
from agentrt.errors import BackendUnavailable
from agentrt.resources.doctor import Probe
from agentrt.resources.memcg_ops import BTF, detect_memcg_ops
from agentrt.resources.scx import NEWER_LIBBPF, OTHER_KERNEL, scheduling_state
from agentrt.resources.trace import system_bcc

__all__ = ["PROBES"]

Answer = tuple[bool, str, str]

PROGRAMS = {
    "tracepoints": ("probe_tracepoint", "events of tool calls as they happen"),
    "cgroup hooks": ("probe_cgroup_connect", "egress policies per tool call"),
    "iterators": ("probe_cgroup_iterator", "sampling whole cgroup trees at once"),
    "fentry": ("probe_fentry", "tracing of kernel functions (optional)"),
    "lsm": ("probe_lsm", "denying operations by cgroup (optional)"),
}
RIGHTS = "Run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN."


def _btf() -> Answer:
    there = Path(BTF).exists()
    found = str(BTF) if there else f"no {BTF}"
    return there, found, "Boot a kernel with CONFIG_DEBUG_INFO_BTF=y."


def _libbpf() -> Answer:
    try:
        found = library()
    except BackendUnavailable as error:
        return False, error.message, error.remedy
    return True, f"{'.'.join(map(str, found.version))} ({found.path})", ""


def _loads(name: str, keep: str = "") -> Answer:
    """Load an object, or one program of it."""
    try:
        BpfObject(name, skip=_others(keep)).close()
    except BackendUnavailable as error:
        return False, error.message, error.remedy
    return True, "loads", ""


def _others(keep: str) -> frozenset[str]:
    return frozenset(program for program, _ in PROGRAMS.values() if program != keep)


def _program(program: str) -> Answer:
    ok, found, remedy = _loads("probe", program)
    if "agentrt doctor" in remedy:
        remedy = "Boot a kernel that has it; lockdown or the build forbids it in this one."
    return ok, found, remedy


def _sched_ext() -> Answer:
    state = scheduling_state()
    if state.state == "absent":
        return False, "not in this kernel", OTHER_KERNEL
    try:
        version = library().version
    except BackendUnavailable as error:
        return False, error.message, error.remedy
    if version < SCX_MINIMUM:
        return False, f"libbpf {version[0]}.{version[1]} cannot load it", NEWER_LIBBPF
    try:
        BpfObject("agent_sched", skip=frozenset({"on_reclaim_anywhere"})).close()
    except BackendUnavailable as error:
        return False, error.message, error.remedy
    return True, f"loads; now {state.state} {state.ops}".strip(), ""


def _memcg_functions() -> Answer:
    ok, found, remedy = _loads("memcg_usage")
    newer = "Boot Linux 7.0 or newer; without it the files of each cgroup are read."
    return ok, found, remedy if remedy == RIGHTS else newer


def _memcg_ops() -> Answer:
    ops = detect_memcg_ops()
    if not ops.present:
        remedy = "None: no released kernel has it, and agentrt does not need it."
        return False, "not in this kernel", remedy
    return True, f"present with {ops.hooks} hooks; agentrt has not been tested with it", ""


def _bcc() -> Answer:
    if system_bcc() is None and importlib.util.find_spec("bcc") is None:
        return False, "not installed", "apt-get install python3-bpfcc linux-headers-$(uname -r)"
    found = system_bcc()
    if found is None:
        return False, "an unrelated package named bcc", "apt-get install python3-bpfcc"
    headers = Path("/lib/modules", Path("/proc/sys/kernel/osrelease").read_text().strip(), "build")
    if not headers.exists():
        return False, f"{found}, but no kernel headers", "apt-get install linux-headers-$(uname -r)"
    return True, str(found), ""


PROBES = (
    Probe("BTF", "BPF programs that fit this kernel without a compiler", _btf),
    Probe("libbpf", "loading BPF programs", _libbpf),
    *(
        Probe(f"BPF {name}", gives, functools.partial(_program, program))
        for name, (program, gives) in PROGRAMS.items()
    ),
    Probe(
        "sensors", "exec, exit, OOM, reclaim and connects per tool call", lambda: _loads("sensors")
    ),
    Probe("egress", "allow-lists of networks per tool call", lambda: _loads("egress")),
    Probe("sched_ext", "scheduling by class, and holds under memory pressure", _sched_ext),
    Probe("memcg functions", "memory of whole trees sampled in the kernel", _memcg_functions),
    Probe("memcg struct_ops", "delays of memory charges by BPF", _memcg_ops),
    Probe("bcc", "agentrt trace: stacks, block I/O and files of a tool call", _bcc),
)
