"""Cgroups that serve one call after another: what the next finds, and which do not come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt import intent
from agentrt.errors import ToolNotStarted
from agentrt.resources.cgroup import CgroupTree
from agentrt.resources.cgroup.slots import LEFT_MOST, LentGroup
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import Limits, SandboxSpec, make_provider
from agentrt.sandbox.host import FILES_A_SLOT, MOST_SLOTS, slots_kept
from tests.sandbox.fake_cgroups import FakeCgroups, fake_machine

MIB = 1 << 20


def calm(files: FakeCgroups, kind: str = "hybrid") -> CgroupTree:
    """A tree whose groups show nothing that happened in them."""
    for name, value in {
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
        "cpu.stat": "nr_throttled 0\nthrottled_time 0",
        "pids.events": "max 0",
        "pids.peak": "1",
    }.items():
        files.shown[name] = value
    tree = CgroupTree("r1", files.layout, files, slots=2)
    tree.open()
    return tree


@pytest.fixture
def files(tmp_path: Path) -> FakeCgroups:
    return fake_machine(tmp_path, "hybrid")


def end(group: LentGroup) -> bool:
    """As ``supervise`` ends a group: look whether it is empty, count, remove."""
    assert not group.populated()
    group.counters()
    return group.remove()


def value(group: LentGroup, name: str) -> str:
    return next(path / name for path in group.paths if (path / name).exists()).read_text()


def test_a_slot_comes_back_with_the_next_calls_limits_only(files):
    tree = calm(files)
    first = tree.lend("s", "tool-1", Limits(memory=64 * MIB, cpu=0.5, pids=7))
    first.control.set_weight(400)
    assert end(first)
    second = tree.lend("s", "tool-2", Limits(memory=32 * MIB))
    assert second.paths == first.paths
    assert value(second, "memory.limit_in_bytes") == str(32 * MIB)
    assert (value(second, "cpu.cfs_quota_us"), value(second, "pids.max")) == ("-1", "max")
    assert (value(second, "cpu.shares"), value(second, "cpu.cfs_burst_us")) == ("1024", "0")
    assert value(second, "memory.max_usage_in_bytes") == "0"  # that the peak was reset
    assert end(second)


def test_a_limit_is_written_again_although_it_should_stand(files):
    tree = calm(files)
    first = tree.lend("s", "tool-1", Limits(memory=64 * MIB))
    limit = next(p for p in first.paths if (p / "memory.usage_in_bytes").exists())
    assert end(first)
    (limit / "memory.limit_in_bytes").write_text("-1")  # by whoever had the right to
    tree.lend("s", "tool-2", Limits(memory=64 * MIB))
    assert (limit / "memory.limit_in_bytes").read_text() == str(64 * MIB)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.usage_in_bytes", str(LEFT_MOST + 1)),
        ("memory.oom_control", "oom_kill 1"),
        ("cpu.stat", "usage_usec 5\nthrottled_time 1"),
        ("pids.events", "max 1"),
        ("memory.usage_in_bytes", "?"),
    ],
)
def test_what_would_tell_on_the_next_call_ends_the_slot(files, name, text):
    tree = calm(files)
    group = tree.lend("s", "tool-1", Limits(memory=64 * MIB))
    for path in group.paths:
        if (path / name).exists():
            (path / name).write_text(text)
    assert end(group)
    assert not any(path.exists() for path in group.paths)
    assert tree.lend("s", "tool-2", Limits()).paths != group.paths


@pytest.mark.parametrize("what", ["kill", "freeze", "retire", "uncounted"])
def test_who_was_held_killed_or_is_unknown_does_not_come_back(files, what):
    tree = calm(files)
    group = tree.lend("s", "tool-1", Limits())
    match what:
        case "kill":
            group.kill()
        case "freeze":
            group.control.freeze(True)
            group.control.freeze(False)
        case "retire":
            group.retire()
    assert not group.populated()
    if what != "uncounted":
        group.counters()
    assert group.remove()
    assert not any(path.exists() for path in group.paths)


def test_a_call_that_is_over_changes_the_next_one_in_nothing(files):
    tree = calm(files)
    first = tree.lend("s", "tool-1", Limits(memory=64 * MIB))
    assert end(first)
    second = tree.lend("s", "tool-2", Limits(memory=64 * MIB))
    assert second.paths == first.paths
    files.written.clear()
    first.kill()
    assert "has ended" in first.control.freeze(True)
    assert "has ended" in first.control.set_max(MIB)
    assert first.control.memory() is None
    assert first.remove()
    assert (files.written, files.killed) == ([], [])
    assert second.control.memory() is not None


def test_a_process_that_stayed_in_one_hierarchy_is_not_handed_on(files):
    tree = calm(files)
    group = tree.lend("s", "tool-1", Limits())
    procs = next(p for p in group.paths if (p / "memory.limit_in_bytes").exists()) / "cgroup.procs"
    procs.write_text("900001\n")
    assert group.populated()
    group.counters()
    assert not group.remove()
    group.kill()
    assert end(group)
    assert not any(path.exists() for path in group.paths)


def test_the_peak_of_processes_is_each_calls_own(files):
    tree = calm(files)
    files.shown["pids.peak"] = "5"
    group = tree.lend("s", "tool-1", Limits())
    assert group.counters().peak_pids == 5
    files.shown["pids.peak"] = "1"  # what a new directory shows
    assert end(group)
    again = tree.lend("s", "tool-2", Limits())
    assert again.paths == group.paths
    assert again.counters().peak_pids == 1


def test_no_more_than_so_many_and_never_another_place(files):
    tree = calm(files)
    a, b, c = (tree.lend(place, "tool-1", Limits()) for place in ("a", "b", "c"))
    assert [type(group) is LentGroup for group in (a, b, c)] == [True, True, False]
    assert all(end(group) for group in (a, b))
    d = tree.lend("d", "tool-1", Limits())  # takes the place of the one that is idle longest
    assert not set(d.paths) & {*a.paths, *b.paths}
    assert not any(path.exists() for path in a.paths)
    assert all(path.exists() for path in b.paths)


@pytest.mark.parametrize("kind", ["v1", "v2", "hybrid"])
def test_all_goes_with_the_place_and_with_the_run(tmp_path, kind):
    files = fake_machine(tmp_path, kind)
    tree = calm(files)
    for place in ("s", "t"):
        group = tree.lend(place, "tool-1", Limits(memory=64 * MIB))
        assert (type(group) is LentGroup) == (kind != "v2")
        group.populated()
        group.counters()
        assert group.remove()
    opened = files.opened
    assert tree.drop_sandbox("s")
    assert tree.close()
    assert files.closed == files.opened == opened
    left = [p for p in tmp_path.rglob("*") if p.is_dir() and "agentrt" in p.parts]
    assert left == []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counters_are_the_calls_own_whoever_was_before(tmp_path_factory, data) -> None:
    files = fake_machine(tmp_path_factory.mktemp("m"), "hybrid")
    tree = calm(files)
    spent = 0
    for number in range(data.draw(st.integers(1, 5))):
        asked = data.draw(
            st.builds(
                Limits,
                memory=st.sampled_from([None, 32 * MIB, 64 * MIB]),
                cpu=st.sampled_from([None, 0.5, 2.0]),
                pids=st.sampled_from([None, 9]),
            )
        )
        group = tree.lend("s", f"tool-{number}", asked)
        shown = {
            "memory.limit_in_bytes": "-1" if asked.memory is None else str(asked.memory),
            "cpu.cfs_quota_us": "-1" if asked.cpu is None else str(int(asked.cpu * 100_000)),
            "pids.max": "max" if asked.pids is None else str(asked.pids),
        }
        for name, wanted in shown.items():
            assert value(group, name) in (wanted, "max" if wanted == "-1" else wanted)
        spends = data.draw(st.integers(0, 5_000_000))
        fresh = data.draw(st.booleans())
        spent = (1_500_000 if not getattr(group.slot, "uses", 0) else spent) + spends
        v2 = group.control.v2 / "cpu.stat"
        v2.write_text(f"usage_usec {spent}")
        counted = group.counters()
        before = 0 if group.slot.uses else 1.5
        assert counted.cpu_seconds == pytest.approx(before + spends / 1e6)
        if fresh:
            group.retire()
        assert not group.populated()
        assert group.remove()


def test_files_are_left_to_others(monkeypatch):
    import resource

    for soft, most in ((1024, MOST_SLOTS), (256, 5), (64, 1), (resource.RLIM_INFINITY, MOST_SLOTS)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert slots_kept() == most
        if soft > 0:
            assert slots_kept() * FILES_A_SLOT <= soft / 4 + 1


# --- the real kernel ---


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


WRITE = "head -c {} /dev/zero > {}"
HOLD = "python3 -c 'x = bytearray({} << 20); x[::4096] = b\"1\" * len(x[::4096])'"


@pytest.mark.anyio
@pytest.mark.requires_root
async def test_no_call_is_blamed_for_an_earlier_one(anyio_backend) -> None:
    """Memory, processes and CPU time of greedy calls do not show in the calls that follow."""
    async with make_provider("process") as provider:
        governor = Governor(GovernorConfig(sensors=False))
        await provider.govern(governor)
        box = await provider.create(SandboxSpec(network="host"))
        asked = intent(memory="96m", pids=40)
        small = [(await box.exec(["true"], intent=asked)).resources for _ in range(3)]
        for number in range(3):
            held = (await box.exec(HOLD.format(60), intent=asked)).resources
            await box.exec(WRITE.format(20 * MIB, f"f{number}"), intent=asked)
            await box.exec("for i in 1 2 3 4 5 6; do sleep 0.05 & done; wait", intent=asked)
            after = (await box.exec(["true"], intent=asked)).resources
            assert after.peak_memory <= max(r.peak_memory for r in small) + LEFT_MOST
            assert after.peak_pids == 1
            assert after.cpu_seconds < held.cpu_seconds
            assert not after.oom_kills
        # All that is allowed can be had, whoever was there before.
        done = await box.exec(HOLD.format(70), intent=asked)
        assert done.ok, done.feedback.text
        for _ in range(3):
            await box.exec(["true"], intent=asked)
        lent, idle = provider._host.tree.slots()
        assert (lent, idle > 0) == (0, True)
        await box.close()
        assert provider._host.tree.slots() == (0, 0)
        governor.close()


@pytest.mark.anyio
@pytest.mark.requires_root
async def test_a_survivor_of_a_call_is_not_handed_on(anyio_backend) -> None:
    async with make_provider("process") as provider:
        box = await provider.create(SandboxSpec(network="host"))
        for _ in range(3):
            done = await box.exec("sleep 60 & echo $!", limits=Limits(pids=20))
            survivor = Path(f"/proc/{int(done.stdout)}/cmdline")
            assert not survivor.exists() or b"sleep\x0060" not in survivor.read_bytes()
            again = await box.exec("cat /proc/self/cgroup", limits=Limits(pids=20))
            where = again.stdout.decode().split("0::/")[1].split("\n")[0]
            left = Path("/sys/fs/cgroup/unified", where, "cgroup.procs")
            assert not left.exists() or left.read_text() == ""


@pytest.mark.anyio
@pytest.mark.requires_root
async def test_a_call_that_is_refused_at_its_cgroup_keeps_none(anyio_backend, monkeypatch) -> None:
    def refuse(self: Governor, governed: object, group: object) -> None:
        raise ToolNotStarted("no", remedy="none")

    async with make_provider("process") as provider:
        governor = Governor(GovernorConfig(sensors=False))
        await provider.govern(governor)
        box = await provider.create(SandboxSpec(network="host"))
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(Governor, "started", refuse)
        for _ in range(3):
            with pytest.raises(ToolNotStarted):
                await box.exec("true", intent=intent(memory="64m"))
        assert provider._host.tree.slots() == (0, 0)
        assert len(os.listdir("/proc/self/fd")) <= before
        tops = [path / box.sandbox_id for path in provider._host.tree.run_paths]
        assert [list(top.glob("tool-*")) for top in tops] == [[]] * len(tops)
        monkeypatch.undo()
        governor.close()
