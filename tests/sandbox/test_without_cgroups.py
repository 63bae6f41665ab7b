"""Where no cgroup can be made: the same promises as far as they can be kept, and the rest said."""

from __future__ import annotations

import anyio
import pytest

from agentrt.errors import ToolNotStarted
from agentrt.resources.cgroup import Layout
from agentrt.sandbox import Limits, SandboxSpec, make_provider
from agentrt.sandbox import host as host_module

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[
        "process",
        pytest.param("bubblewrap", marks=pytest.mark.requires_bwrap),
    ]
)
async def provider(request, monkeypatch):
    monkeypatch.setattr(host_module, "read_layout", Layout)
    async with make_provider(request.param) as made:
        yield made


@pytest.fixture
async def box(provider):
    async with await provider.create(SandboxSpec()) as made:
        yield made


async def test_what_is_not_enforced_is_said(box, provider):
    done = await box.exec("echo x", limits=Limits(memory=1 << 26, cpu=1, pids=5))
    assert done.stdout == b"x\n"
    names = [line.partition(":")[0] for line in done.unenforced]
    assert names[:4] == ["memory", "cpu", "pids", "cgroup"]
    assert done.resources.peak_memory is None
    probe = await provider.probe()
    assert probe.ok
    assert {"memory", "cpu", "pids"} <= probe.missing.keys()
    assert not {"memory", "cpu", "pids"} & set(probe.enforces)


async def test_hidden_children_are_found_and_killed(box, tracer):
    hidden = (
        f"(setsid sh -c 'setsid sleep {tracer.number} & sleep {tracer.number}' >/dev/null 2>&1 &)"
    )
    done = await box.exec(f"{hidden}; sleep {tracer.number} & echo done")
    assert done.stdout == b"done\n"
    assert tracer.alive() == []


async def test_timeout_and_cancel(box, tracer):
    script = f"trap '' TERM; setsid sleep {tracer.number} & sleep {tracer.number}"
    assert (await box.exec(script, timeout=1.0)).status == "timeout"
    assert tracer.alive() == []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box.exec, script)
        await tracer.appears()
        tasks.cancel_scope.cancel()
    assert tracer.alive() == []


async def test_a_neighbour_lives(box, tracer):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box.exec, f"sleep {tracer.number}")
        await tracer.appears()
        assert (await box.exec("true")).ok
        assert tracer.alive()
        tasks.cancel_scope.cancel()


@pytest.mark.requires_root
async def test_a_cgroup_that_cannot_be_joined_stops_the_call(monkeypatch, tmp_path):
    from agentrt.resources.cgroup import ToolGroup
    from agentrt.resources.cgroup.slots import LentGroup

    paths = (tmp_path / "absent" / "cgroup.procs",)
    for group in (ToolGroup, LentGroup):
        monkeypatch.setattr(group, "procs", property(lambda self: paths))
    async with make_provider("process") as made, await made.create(SandboxSpec()) as box:
        with pytest.raises(ToolNotStarted, match="cannot join"):
            await box.exec("touch ran")
        with pytest.raises(FileNotFoundError):
            await box.read_file("ran")
