"""Tool calls under the resource controller, for real: what is declared, enforced and told."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from agentrt import intent
from agentrt.errors import SandboxError, ToolNotStarted
from agentrt.resources.cgroup import read_layout
from agentrt.resources.envelope import Budget
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import Limits, SandboxSpec, make_provider
from tests.sandbox.conftest import cgroups_of

pytestmark = [pytest.mark.anyio, pytest.mark.requires_root]

MIB = 1 << 20
USE = "python3 -c 'import sys,time; x=b\"1\"*({} << 20); time.sleep({})'"

GROW = """python3 -c 'import time
x = []
for _ in range({}):
    x.append(b"1" * (8 << 20))
    time.sleep({})
'"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    """A governed provider of plain processes, and the records of its calls."""

    def __init__(self, provider, governor: Governor, records: list) -> None:
        self.provider = provider
        self.governor = governor
        self.records = records

    async def box(self, **spec):
        return await self.provider.create(SandboxSpec(network="host", **spec))


@pytest.fixture
async def place(request, anyio_backend) -> AsyncIterator[Place]:
    records: list = []
    settings = getattr(request, "param", {})
    governor = Governor(GovernorConfig(on_call=records.append, **settings))
    async with make_provider("process") as provider:
        await provider.govern(governor)
        yield Place(provider, governor, records)
        governor.close()


async def test_a_declared_limit_is_a_limit_and_is_told(place) -> None:
    box = await place.box()
    done = await box.exec(
        USE.format(300, 0), intent=intent(memory="64m", on_limit="kill"), timeout=60
    )
    assert done.status == "out_of_memory"
    assert done.resources.memory_limit == 64 * MIB
    assert done.feedback.outcome == "out_of_memory"
    assert 'AGENT_RESOURCE_HINT="memory:128m"' in done.feedback.text
    assert place.records[0]["oom_kills"] >= 1


async def test_a_grandchild_out_of_memory_under_another_exit_code(place) -> None:
    box = await place.box()
    command = f"sh -c {json.dumps(USE.format(300, 0))} ; exit 7"
    done = await box.exec(command, intent=intent(memory="64m", on_limit="kill"), timeout=60)
    assert (done.status, done.exit_code) == ("out_of_memory", 7)


async def test_137_alone_is_an_exit_code(place) -> None:
    done = await (await place.box()).exec("exit 137", intent=intent(memory="64m"))
    assert (done.status, done.exit_code, done.feedback.text) == ("exited", 137, "")


async def test_slack_is_lent_to_a_call_that_said_too_little(place) -> None:
    box = await place.box()
    done = await box.exec(GROW.format(30, 0.05), intent=intent(memory="64m"), timeout=60)
    assert done.ok, done.feedback.text
    assert done.feedback.lent > 0
    assert done.resources.peak_memory > 200 * MIB


async def test_hints_reach_us_in_the_command_and_the_environment(place) -> None:
    box = await place.box(env={"AGENT_RESOURCE_HINT": "memory:32m,on_limit:kill"})
    done = await box.exec("true")
    assert done.resources.memory_limit == 32 * MIB
    done = await box.exec("AGENT_RESOURCE_HINT=memory:48m,on_limit:kill,x:1 true")
    assert done.resources.memory_limit == 48 * MIB
    assert "x:1" in done.feedback.text
    with intent(memory="80m", on_limit="kill"):
        done = await box.exec("true")
    assert done.resources.memory_limit == 80 * MIB


@pytest.mark.parametrize(
    "place", [{"tenants": {"alice": Budget("alice", memory=256 * MIB)}}], indirect=True
)
async def test_a_tenant_is_held_to_its_budget(place) -> None:
    box = await place.box(tenant="alice", program="agent/1")
    done = await box.exec("cat /proc/self/cgroup", intent=intent(memory="1g"))
    assert done.resources.memory_limit == 256 * MIB
    assert "memory 1g was cut to 256m, the budget of the tenant" in done.feedback.text
    lines = done.stdout.decode().splitlines()
    where = next(line for line in lines if line.startswith("0::"))
    assert "/alice/agent_1=" in where
    inner = read_layout().v2.mount / where.removeprefix("0::/")
    # What is kept of it serves the program's next call, and goes with the program.
    assert not inner.exists() or (inner / "cgroup.procs").read_text() == ""
    place.governor.program_ended("alice", "agent/1")
    assert not inner.parent.exists()


@pytest.mark.parametrize("place", [{"memory": 400 * MIB}], indirect=True)
async def test_a_small_call_stands_still_before_a_big_one_dies(place) -> None:
    seen: list[str] = []
    high = await place.box(program="high", intent=intent(priority="high"))
    low = await place.box(program="low", intent=intent(priority="low"))
    results = {}

    async def run(name, box, command, asked) -> None:
        results[name] = await box.exec(
            command, intent=asked, timeout=90, on_progress=seen.append if name == "low" else None
        )

    # The low one wants to grow while the high one holds most of the budget.
    slow = GROW.format(22, 0.06)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "high", high, USE.format(220, 4), intent(memory="240m"))
        tasks.start_soon(run, "low", low, slow, intent(memory="220m", on_limit="freeze"))
    assert results["high"].ok, results["high"].feedback.text
    assert results["low"].ok, results["low"].feedback.text
    assert results["high"].resources.frozen == 0
    waited = results["low"].resources.frozen + results["low"].resources.waited
    assert waited > 0
    assert place.governor.statistics().killed == 0


@pytest.mark.parametrize("place", [{"memory": 100 * MIB}], indirect=True)
async def test_who_waits_too_long_is_refused_by_name_and_reason(place) -> None:
    box = await place.box()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box.exec, "sleep 5")
        await anyio.sleep(0.5)
        with pytest.raises(ToolNotStarted, match="not started: its deadline passed"):
            await box.exec("true", intent=intent(memory="100m", deadline=0.3))
        tasks.cancel_scope.cancel()


async def test_a_deadline_kills_with_feedback(place) -> None:
    box = await place.box()
    done = await box.exec("sleep 60", intent=intent(deadline=0.5), timeout=50)
    assert done.status in ("killed", "timeout")
    assert not done.ok
    assert done.feedback.text
    with pytest.raises(SandboxError):
        done.check()


async def test_what_is_not_said_is_learned(place) -> None:
    box = await place.box(labels={"repository": "r"})
    for _ in range(6):
        await box.exec("echo hello")
    found = place.governor.learner.estimate("echo", "explore", "r")
    assert found.calls >= 5
    assert "learned from" in found.source


async def test_priorities_are_weights_and_ranks(place) -> None:
    box = await place.box()
    done = await box.exec("cat /proc/self/oom_score_adj", intent=intent(priority="low"))
    assert done.stdout == b"600\n"
    done = await box.exec("cat /proc/self/oom_score_adj", intent=intent(priority="high"))
    assert int(done.stdout) <= 0


async def test_a_framework_lives_beside_its_tools(place) -> None:
    await place.box(tenant="t", program="p")
    async with await anyio.open_process(["sleep", "60"]) as agent:
        assert place.governor.framework("t", "p", agent.pid) == ""
        where = Path(f"/proc/{agent.pid}/cgroup").read_text()
        assert "/t/p/framework" in where
        place.governor.program_ended("t", "p")
        assert "/framework" not in Path(f"/proc/{agent.pid}/cgroup").read_text()
        agent.kill()


async def test_nothing_is_left(place) -> None:
    box = await place.box(tenant="t", program="p")
    await box.exec("true")
    run_id = box._host.state.run_id
    assert cgroups_of(run_id)
    place.governor.close()
    await place.provider.close()
    assert cgroups_of(run_id) == []


async def test_an_intent_alone_is_governed_too() -> None:
    async with make_provider("process") as provider:
        box = await provider.create(SandboxSpec(limits=Limits(memory=128 * MIB), network="host"))
        plain = await box.exec("true")
        assert plain.feedback is None
        asked = await box.exec("true", intent=intent(memory="1g"))
        assert asked.resources.memory_limit == 128 * MIB
        assert "the budget of the sandbox" in asked.feedback.text


@pytest.mark.parametrize("place", [{"sensors": False}], indirect=True)
async def test_lesser_calls_step_back_on_a_cpu_that_a_greater_one_waits_for(place) -> None:
    """On one CPU, in programs of their own: the greater call gets most of it, and then all."""
    cpu = min(os.sched_getaffinity(0))
    spin = f"exec taskset -c {cpu} sh -c 'while :; do :; done'"
    seen: dict[str, list[str]] = {"high": [], "low": []}

    async def run(name: str, program: str, asked, seconds: float):
        box = await place.box(program=program)
        return await box.exec(spin, intent=asked, timeout=seconds)

    def weights(program: str) -> list[str]:
        host = place.provider._host
        tops = () if host is None else host.tree.run_paths
        places = [top / "default" / program for top in tops]
        found = [path for place in places for path in (place, *place.glob("tool-*"))]
        files = [path / name for path in found for name in ("cpu.shares", "cpu.weight")]
        return [file.read_text().strip() for file in files if file.exists()]

    async def look() -> None:
        while "low" not in results:
            await anyio.sleep(0.2)
            for name in seen:
                seen[name] += weights(name)

    results = {}

    async def keep(name: str, priority: str, seconds: float) -> None:
        results[name] = await run(name, name, intent(priority=priority, memory="64m"), seconds)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep, "high", "high", 3.0)
        tasks.start_soon(keep, "low", "low", 5.0)
        for number in range(2):
            tasks.start_soon(keep, f"low{number}", "low", 5.0)
        tasks.start_soon(look)
    on_v1 = read_layout().v1("cpu") is not None
    assert {"2048" if on_v1 else "200"} <= set(seen["high"])
    assert {"512" if on_v1 else "50", "122" if on_v1 else "12"} <= set(seen["low"])
    assert place.governor.statistics().weight_cuts > 0
    spent = {name: done.resources.cpu_seconds for name, done in results.items()}
    assert spent["high"] > spent["low0"] * 3 / 5  # in 3 s more than each of them in the same 3 s
