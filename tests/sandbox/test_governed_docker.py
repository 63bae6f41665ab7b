"""Containers of the Docker engine under the resource controller, through every cgroup tree.

On a hybrid host a tool call's limits are v1 files and its freezing, killing and sensing go through
the v2 tree; on v2 all of it is one directory. The container itself lies beside its tool calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from agentrt import intent
from agentrt.resources.cgroup import Control, Leaf, ToolGroup, read_layout
from agentrt.resources.envelope import Budget
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import SandboxSpec, make_provider
from tests.sandbox.conftest import cgroups_of

pytestmark = [pytest.mark.anyio, pytest.mark.requires_root, pytest.mark.requires_docker]

MIB = 1 << 20
HOLD = "head -c {0} /dev/zero | tail -c {0} | {{ sleep {1}; wc -c; }}"
"""``tail`` keeps so many bytes; then all stand still for a while."""
GROW = (
    "i=0; while [ $i -lt {} ]; do head -c 8388608 /dev/zero; sleep 0.06; i=$((i+1)); done"
    " | tail -c 900000000 | wc -c"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    """A governed provider of containers, and the records of its calls."""

    def __init__(self, provider, governor: Governor, records: list) -> None:
        self.provider = provider
        self.governor = governor
        self.records = records

    async def box(self, program: str, **spec):
        return await self.provider.create(SandboxSpec(program=program, tenant="t", **spec))

    def groups(self, program: str) -> dict[str, list[Path]]:
        """Directories of a program in every hierarchy, by their name."""
        found: dict[str, list[Path]] = {}
        for top in cgroups_of(self.provider._host.state.run_id):
            for path in (top / "t" / program).glob("*/"):
                found.setdefault(path.name, []).append(path)
        return found

    def control(self, paths: list[Path]) -> Control:
        """What can be read of a group of these directories."""
        hierarchies = read_layout().hierarchies
        leaves = [
            Leaf(next(h for h in hierarchies if path.is_relative_to(h.mount)), path)
            for path in paths
        ]
        return ToolGroup(leaves, self.provider._host.tree._files).control


@pytest.fixture
async def place(request, anyio_backend, test_image) -> AsyncIterator[Place]:
    records: list = []
    settings = getattr(request, "param", {})
    governor = Governor(GovernorConfig(on_call=records.append, **settings))
    async with make_provider("docker", image=test_image) as provider:
        await provider.govern(governor)
        yield Place(provider, governor, records)
        run = provider._host.state.run_id
        governor.close()
    assert cgroups_of(run) == []


def values(paths: list[Path], *names: str) -> set[str]:
    return {(p / n).read_text().strip() for p in paths for n in names if (p / n).exists()}


@pytest.mark.parametrize("place", [{"program": Budget("program", memory=512 * MIB)}], indirect=True)
async def test_container_and_calls_are_siblings_under_one_budget(place) -> None:
    box = await place.box("agent")
    asked = intent(memory="64m", cpu=0.5, pids=20, on_limit="kill")
    seen: dict[str, list[Path]] = {}
    held: list[set[str]] = []

    async def look() -> None:
        while not held:
            await anyio.sleep(0.02)
            seen.update(place.groups("agent"))
            call = next((paths for name, paths in seen.items() if name.startswith("tool-")), [])
            if any(values(call, "cgroup.procs")):
                held.append(values(call, "memory.limit_in_bytes", "memory.max"))
                held.append(values(call, "pids.max"))
                held.append(values(call, "cpu.cfs_quota_us", "cpu.max"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        done = await box.exec("sleep 1; cat /proc/self/cgroup", intent=asked, timeout=60)
    call = next(name for name in seen if name.startswith("tool-"))
    container = next(name for name in seen if name == box._container)
    layout = read_layout()
    assert layout.v2 is not None
    for name in (call, container):
        assert any(path.is_relative_to(layout.v2.mount) for path in seen[name])
        for controller in ("memory", "cpu", "pids"):
            v1 = layout.v1(controller)
            assert v1 is None or any(path.is_relative_to(v1.mount) for path in seen[name])
    assert held[:2] == [{str(64 * MIB)}, {"20"}]
    assert held[2] in ({"50000"}, {"50000 100000"})
    above = [path.parent for path in seen[call]]
    assert str(512 * MIB) in values(above, "memory.limit_in_bytes", "memory.max")
    assert done.ok, done.stderr
    assert done.resources.cpu_seconds is not None
    await box.close()
    place.governor.program_ended("t", "agent")
    assert place.groups("agent") == {}


async def test_out_of_memory_takes_the_call_and_not_the_container(place) -> None:
    box = await place.box("agent")
    asked = intent(memory="48m", on_limit="kill")
    done = await box.exec(HOLD.format(200 * MIB, 0), intent=asked, timeout=60)
    assert done.resources.oom_kills >= 1
    assert done.resources.memory_limit == 48 * MIB
    assert place.records[0]["oom_kills"] >= 1
    assert "memory" in done.feedback.text
    again = await box.exec("echo here", intent=asked, timeout=60)
    assert again.stdout == b"here\n"
    assert again.resources.oom_kills == 0


@pytest.mark.parametrize("place", [{"memory": 400 * MIB}], indirect=True)
async def test_a_container_stands_still_before_another_one_dies(place) -> None:
    high = await place.box("high", intent=intent(priority="high"))
    low = await place.box("low", intent=intent(priority="low"))
    stood: list[bool] = []
    results = {}

    async def run(name, box, command, asked) -> None:
        results[name] = await box.exec(command, intent=asked, timeout=90)

    async def look() -> None:
        while "low" not in results:
            await anyio.sleep(0.02)
            groups = place.groups("low")
            tool = next((paths for name, paths in groups.items() if name.startswith("tool")), [])
            if tool:
                stood.append(place.control(tool).frozen())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "high", high, HOLD.format(220 * MIB, 4), intent(memory="240m"))
        tasks.start_soon(run, "low", low, GROW.format(22), intent(memory="220m"))
        tasks.start_soon(look)
    assert all(done.ok for done in results.values()), results
    assert results["high"].resources.frozen == 0
    assert results["low"].resources.frozen + results["low"].resources.waited > 0
    assert any(stood) == (results["low"].resources.frozen > 0.1)
    assert place.governor.statistics().killed == 0
    for box in (high, low):
        await box.close()


async def test_a_deadline_kills_the_call_in_its_container_and_no_more(place) -> None:
    box = await place.box("agent")
    done = await box.exec("sleep 60 & sleep 60", intent=intent(deadline=1.0), timeout=50)
    assert done.status in ("killed", "timeout")
    listed = await box.exec("ps -e -o comm= || true", intent=intent(memory="64m"), timeout=60)
    assert listed.stdout.count(b"sleep") <= 1  # what keeps the container itself alive


@pytest.mark.requires_bpf
async def test_sensors_see_into_containers(place) -> None:
    box = await place.box("agent")
    await box.exec("true; ls / > /dev/null; exit 3", intent=intent(memory="64m"), timeout=60)
    events = place.records[0]["events"]
    assert events["exec"] >= 1
    assert events["exit"] >= 1
    assert place.governor.sensor_statistics().lost == 0
