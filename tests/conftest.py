"""What the whole suite shares: tests that need something of the machine say so, and are counted.

A marker ``requires_NAME`` skips its test with a reason where NAME is missing. With
``AGENTRT_REQUIRE=docker,bwrap,root,bpf`` the named ones fail instead: nothing is missed unseen.
``tests/vm`` runs in the guest of ``scripts/vm-test`` only, which sets ``AGENTRT_IN_VM``.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from agentrt.waiting import wait_passively

# Before any test loads torch: beside other work, threads that spin cost more than the tests do.
wait_passively(os.environ)

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


# How long an example takes is no matter of correctness: nothing fails on a slow machine.
settings.register_profile("agentrt", deadline=None)
settings.load_profile("agentrt")

collect_ignore = [] if os.environ.get("AGENTRT_IN_VM") else ["vm"]


@functools.cache
def missing(name: str) -> str:
    """Why a requirement is not met on this machine; empty when it is."""
    checks = {
        "docker": _docker,
        "bwrap": _bwrap,
        "root": _root,
        "data": _data,
        "bpf": _bpf,
        "scx": _scx,
        "native": _native,
        "cuda": _cuda,
    }
    return checks[name]()


def _docker() -> str:
    from agentrt.errors import BackendUnavailable
    from agentrt.sandbox.docker_api import connect

    if os.geteuid() != 0:
        return "the docker kind needs root"
    try:
        connect(timeout=5).close()
    except BackendUnavailable as error:
        return str(error)
    return ""


def _bwrap() -> str:
    return "" if shutil.which("bwrap") else "bubblewrap is not installed"


def _native() -> str:
    from agentrt.engine.attention.native import NativeUnavailable, load_native

    try:
        load_native()
    except NativeUnavailable as error:
        return str(error)
    return ""


def _cuda() -> str:
    import torch

    return "" if torch.cuda.is_available() else "there is no CUDA device"


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _data() -> str:
    return "" if SHARED_DATA.is_dir() else f"no data at {SHARED_DATA}"


def _bpf() -> str:
    from agentrt.ebpf import BpfObject
    from agentrt.errors import BackendUnavailable
    from agentrt.resources.cgroup import read_layout

    if read_layout().v2 is None:
        return "no cgroup v2 tree is mounted"
    try:
        BpfObject("sensors").close()
    except BackendUnavailable as error:
        return str(error)
    return ""


def _scx() -> str:
    from agentrt.resources.scx import scheduling_state

    return "the kernel has no sched_ext" if scheduling_state().state == "absent" else ""


def required() -> set[str]:
    """The requirements whose absence is a failure."""
    return set(filter(None, os.environ.get("AGENTRT_REQUIRE", "").replace(" ", "").split(",")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose requirement is not met."""
    for marker in item.iter_markers():
        if not marker.name.startswith("requires_"):
            continue
        name = marker.name.removeprefix("requires_")
        if reason := missing(name):
            if name in required():
                pytest.fail(f"AGENTRT_REQUIRE names {name}, but: {reason}", pytrace=False)
            pytest.skip(f"{name}: {reason}")


@pytest.fixture
def v2_group() -> Iterator[Path]:
    """A fresh cgroup of the v2 tree, emptied and removed afterwards; use with ``requires_root``."""
    from agentrt.resources.cgroup import CgroupFiles, read_layout

    layout = read_layout()
    if layout.v2 is None:
        pytest.skip("no cgroup v2 tree is mounted")
    files = CgroupFiles()
    group = layout.v2.mount / f"agentrt-test-{os.getpid()}"
    files.make(group)
    yield group
    files.write(group / "cgroup.kill", "1")
    deadline = time.monotonic() + 10
    while not files.remove(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not group.exists()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of trace files beside the checkout; use with ``requires_data``."""
    return SHARED_DATA
