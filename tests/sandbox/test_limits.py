"""Limits of a tool call hold, are measured in its own cgroup, and hurt nobody else."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from agentrt.errors import ToolOutOfMemory
from agentrt.sandbox import Limits, SandboxSpec

pytestmark = [pytest.mark.anyio, pytest.mark.requires_root]

MB = 1 << 20
FILL = "head -c 300000000 /dev/zero | tail"


@pytest.fixture
async def box(provider):
    async with await provider.create(SandboxSpec(limits=Limits(memory=64 * MB))) as made:
        yield made


async def test_memory_bomb_is_named_and_hurts_no_neighbour(box, tracer):
    neighbour = []

    async def run() -> None:
        command = "while ! test -e go; do sleep 0.02; done; echo alive"
        neighbour.append(await box.exec(["sh", "-c", command, tracer.number], timeout=60))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await tracer.appears()
        done = await box.exec(FILL, timeout=60)
        await box.write_file("go", b"")
    assert done.status == "out_of_memory"
    assert done.resources.oom_kills
    assert done.resources.oom_kills >= 1
    assert 60 * MB < done.resources.peak_memory <= 64 * MB
    assert "memory" not in " ".join(done.unenforced)
    with pytest.raises(ToolOutOfMemory, match="64 MiB"):
        done.check()
    assert (neighbour[0].status, neighbour[0].stdout) == ("exited", b"alive\n")
    assert neighbour[0].resources.oom_kills == 0


async def test_many_small_ones_count_together(box):
    one = "head -c 25000000 /dev/zero | tail"
    done = await box.exec(f"({one}) & ({one}) & ({one}) & ({one}) & wait; exit 1", timeout=60)
    assert done.status == "out_of_memory"


async def test_137_is_not_out_of_memory(box):
    for command in ("exit 137", "kill -9 $$"):
        done = await box.exec(command)
        assert (done.status, done.exit_code) == ("exited", 137)
        assert done.resources.oom_kills == 0


async def test_a_survived_out_of_memory_is_a_fact_not_a_failure(box):
    done = await box.exec(f"({FILL}); exit 0", timeout=60)
    assert (done.status, done.exit_code) == ("exited", 0)
    assert done.resources.oom_kills >= 1


async def test_fork_bomb_meets_its_limit(box, tracer):
    bomb = f"for i in 1 2 3 4 5 6 7 8 9; do sleep {tracer.number} & done; wait"
    many = " & ".join(f"(sh -c '{bomb}')" for _ in range(9))
    done = await box.exec(
        many + "; wait", limits=Limits(pids=20, memory=64 * MB), timeout=2.0, output_cap=10_000
    )
    assert done.status in ("timeout", "exited")
    assert done.resources.pids_refused > 0
    assert done.resources.peak_pids <= 20 + box.spare_pids
    assert tracer.alive() == []
    assert (await box.exec("true")).ok


async def test_limits_stand_in_the_cgroup_files(box, provider, tracer):
    async def run() -> None:
        limits = Limits(memory=40 * MB, cpu=0.5, pids=9)
        await box.exec(f"sleep {tracer.number}", limits=limits)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await tracer.appears()
        found = _values(provider, box.sandbox_id)
        tasks.cancel_scope.cancel()
    assert str(40 * MB) in found["memory"]
    assert found["cpu"] in (["50000", "100000"], ["50000 100000"])
    assert found["pids"] == [str(9 + box.spare_pids)]


async def test_cpu_time_is_measured(box):
    done = await box.exec("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    assert 0 < done.resources.cpu_seconds < done.duration * 4 + 1
    assert done.resources.peak_pids >= 1


async def test_defaults_of_the_sandbox_and_limits_of_the_call(box):
    assert (await box.exec(FILL, limits=Limits(cpu=1), timeout=60)).status == "out_of_memory"
    small = "head -c 100000000 /dev/zero | tail | wc -c"
    done = await box.exec(small, limits=Limits(memory=400 * MB), timeout=60)
    assert (done.status, done.stdout) == ("exited", b"100000000\n")


def _values(provider, sandbox_id: str) -> dict[str, list[str]]:
    """The limits that stand in the files of the sandbox's only tool call."""
    names = {
        "memory": ("memory.limit_in_bytes", "memory.max"),
        "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"),
        "pids": ("pids.max",),
    }
    out: dict[str, list[str]] = {name: [] for name in names}
    for path in provider._host.tree.run_paths:
        for leaf in (path / sandbox_id).glob("tool-*"):
            for name, files in names.items():
                out[name] += [
                    Path(leaf / file).read_text().strip()
                    for file in files
                    if (leaf / file).exists()
                ]
    return out
