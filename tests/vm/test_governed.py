"""Governed tool calls on cgroup v2: what a hybrid host cannot give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from agentrt import intent
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import SandboxProvider, SandboxSpec, make_provider

MIB = 1 << 20


def governed(work: Callable[[SandboxProvider, Governor], Awaitable[None]]) -> Callable[..., None]:
    """A test whose body gets a governed provider of plain processes."""

    async def body() -> None:
        governor = Governor(GovernorConfig(sensors=False))
        async with make_provider("process") as provider:
            await provider.govern(governor)
            await work(provider, governor)
            governor.close()

    def test(tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("AGENTRT_STATE", str(tmp_path / "state"))
        anyio.run(body)

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    return test


READ = "cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); cat {}"


@governed
async def test_the_files_of_a_call(provider, governor) -> None:
    box = await provider.create(SandboxSpec(network="host", tenant="t", program="p"))
    names = "memory.high memory.max memory.oom.group cpu.weight cpu.max pids.max"
    done = await box.exec(
        READ.format(names), intent=intent(memory="64m", priority="low", cpu=0.5, pids=40)
    )
    assert done.stdout.decode().split("\n")[:6] == [
        str(64 * MIB),
        str(96 * MIB),
        "1",
        "50",
        "50000 100000",
        "40",
    ]
    assert done.unenforced == ()


@governed
async def test_an_oom_kill_takes_the_whole_call(provider, governor) -> None:
    box = await provider.create(SandboxSpec(network="host"))
    use = "x = bytearray(200 << 20)"
    done = await box.exec(
        f"sleep 60 & python3 -S -c '{use}'; echo survived",
        intent=intent(memory="48m", on_limit="kill"),
        timeout=60,
    )
    assert done.status == "out_of_memory"
    assert done.stdout == b""
    assert done.resources.oom_kills >= 1


@governed
async def test_a_call_at_its_soft_limit_is_slowed_and_lent_more(provider, governor) -> None:
    box = await provider.create(SandboxSpec(network="host"))
    use = "python3 -S -c 'x = b\"1\" * (150 << 20)'"
    done = await box.exec(use, intent=intent(memory="64m"), timeout=90)
    assert done.ok, done.feedback
    assert done.feedback.lent > 0


@governed
async def test_a_framework_can_be_reclaimed_and_goes_home(provider, governor) -> None:
    await provider.create(SandboxSpec(network="host", tenant="t", program="p"))
    async with await anyio.open_process(["sleep", "99"]) as agent:
        place = Path(f"/proc/{agent.pid}/cgroup")
        home = place.read_text()
        assert governor.framework("t", "p", agent.pid) == ""
        assert place.read_text().strip().endswith("/t/p/framework")
        assert governor._places._frameworks["p"].group.control.reclaim(MIB) == ""
        governor.turn("p", True)
        governor.turn("p", False)
        governor.program_ended("t", "p")
        assert place.read_text() == home
        agent.kill()
