"""Idle memory moves to compressed swap, which is what reclaiming frameworks relies on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import Group

MB = 1 << 20


@pytest.fixture(scope="module")
def zram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    modules = Path(os.environ["AGENTRT_VM_MODULES"]) / "kernel"
    for name in ("lib/lz4/lz4hc_compress", "lib/lz4/lz4_compress", "drivers/block/zram/zram"):
        packed = modules / f"{name}.ko.xz"
        if not packed.exists():
            continue
        module = tmp_path_factory.mktemp("modules") / packed.stem
        module.write_bytes(subprocess.run(["xz", "-dc", packed], check=True, stdout=-1).stdout)
        # already there, or built in
        subprocess.run(["busybox", "insmod", module], check=False, capture_output=True)
    Path("/sys/block/zram0/disksize").write_text("256M")
    subprocess.run(["/sbin/mkswap", "/dev/zram0"], check=True, capture_output=True)
    subprocess.run(["/sbin/swapon", "/dev/zram0"], check=True)
    yield
    subprocess.run(["/sbin/swapoff", "/dev/zram0"], check=True)


def test_reclaim_moves_idle_memory_to_swap_and_it_comes_back(zram: None, group: Group):
    framework = group.child("framework")
    with framework.allocator(48 * MB) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        before = int(framework.read("memory.current"))
        deadline = time.monotonic() + 60
        while int(framework.read("memory.current")) > before - 24 * MB:
            assert time.monotonic() < deadline
            with contextlib.suppress(BlockingIOError):
                framework.write("memory.reclaim", 8 * MB)
        assert int(framework.read("memory.swap.current")) >= 20 * MB
        assert process.poll() is None


def test_memory_high_with_swap_does_not_stall_for_good(zram: None, group: Group):
    tool = group.child("tool")
    tool.write("memory.high", 20 * MB)
    tool.write("memory.max", 96 * MB)
    with tool.allocator(40 * MB) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert int(tool.read("memory.swap.peak")) > 10 * MB
