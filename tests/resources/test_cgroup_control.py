"""The verbs of a live cgroup, on fake machines of every layout."""

from __future__ import annotations

import os

import pytest

from agentrt.resources.cgroup import CgroupTree, block_device, cgroup_name
from agentrt.resources.cgroup.names import program_place
from agentrt.sandbox import Limits
from tests.sandbox.fake_cgroups import FakeCgroups, fake_machine

KINDS = ["v1", "hybrid", "v2"]


def made(files: FakeCgroups, place: str = "t/p"):
    tree = CgroupTree("r1", files.layout, files)
    tree.open()
    return tree, tree.tool(place, "tool-1", Limits())


def text(group, name: str) -> list[str]:
    return [(path / name).read_text() for path in group.paths if (path / name).exists()]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_limits(tmp_path, kind):
    _, group = made(fake_machine(tmp_path, kind))
    control = group.control
    assert control.set_max(1 << 30) == ""
    hard = "memory.max" if kind == "v2" else "memory.limit_in_bytes"
    assert text(group, hard) == [str(1 << 30)]
    assert control.set_max(None) == ""
    assert text(group, hard) == ["max" if kind == "v2" else "-1"]
    for said in (control.set_high(1 << 20), control.set_low(5), control.set_oom_group(True)):
        assert (said == "") is (kind == "v2")
    assert ("v2 only" in control.reclaim(4096)) is (kind != "v2")
    assert control.memory() == (4096 if kind == "v2" else 2048)
    assert control.memory_events()["oom_kill"] == (1 if kind == "v2" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_cpu_and_pids(tmp_path, kind):
    _, group = made(fake_machine(tmp_path, kind))
    control = group.control
    assert control.set_weight(200) == ""
    assert control.set_cpu(0.5, burst=4.0) == ""
    assert control.set_pids(7) == ""
    if kind == "v2":
        assert text(group, "cpu.weight") == ["200"]
        assert text(group, "cpu.max") == ["50000 100000"]
        assert text(group, "cpu.max.burst") == ["50000"]
    else:
        assert text(group, "cpu.shares") == ["2048"]
        assert text(group, "cpu.cfs_quota_us") == ["50000"]
        assert text(group, "cpu.cfs_burst_us") == ["50000"]
        assert control.cpu_throttled() == 0.25
    assert text(group, "pids.max") == ["7"]


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_needs_a_v2_tree(tmp_path, kind):
    _, group = made(fake_machine(tmp_path, kind))
    said = group.control.freeze(True)
    if kind == "v1":
        assert "v2 tree" in said
        assert not group.control.frozen()
        assert group.control.stalled() is None
        return
    assert said == ""
    assert group.control.wait_frozen(0.0)
    assert group.control.freeze(False) == ""
    assert not group.control.frozen()
    assert group.control.stalled() == 1.5
    assert group.control.dying() == 2
    assert group.control.pressure_path("memory").name == "memory.pressure"


def test_a_freeze_that_does_not_come_is_seen(tmp_path):
    files = fake_machine(tmp_path, "v2")
    files.slow_to_freeze = True
    _, group = made(files)
    assert group.control.freeze(True) == ""
    assert not group.control.wait_frozen(0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_programs_have_inner_nodes_with_budgets(tmp_path, kind):
    files = fake_machine(tmp_path, kind)
    tree, group = made(files, program_place("alice", "agent/7"))
    inner = tree.place(program_place("alice", "agent/7"))
    assert inner.control.set_max(1 << 30) == ""
    assert {path.parent for path in group.paths} == set(inner.paths)
    framework = tree.framework(program_place("alice", "agent/7"))
    assert all(path.name == "framework" for path in framework.paths)
    assert all((path / "cgroup.procs").read_text() == "" for path in inner.paths)
    for one in (group, framework):
        assert one.remove()
    assert tree.drop_place(program_place("alice", "agent/7"))
    assert [str(p) for p in tmp_path.rglob("*alice*")] == []
    assert tree.close()


def test_io_is_limited_where_there_is_a_controller(tmp_path):
    (tmp_path / "two").mkdir()
    _, group = made(fake_machine(tmp_path, "v2"))
    assert group.control.set_io("8:0", 1 << 20) == ""
    assert text(group, "io.max") == ["8:0 rbps=1048576 wbps=1048576"]
    _, group = made(fake_machine(tmp_path / "two", "v1"))
    assert "no io controller" in group.control.set_io("8:0", 1)


def test_what_a_cgroup_holds_is_reclaimed_before_it_is_removed(tmp_path):
    files = fake_machine(tmp_path, "v2")
    _, group = made(files)
    for path in group.paths:
        (path / "memory.current").write_text(str(5 << 20))
    assert group.remove()
    assert [v for p, v in files.written if p.name == "memory.reclaim"] == [str(5 << 20)]


@pytest.mark.parametrize(
    "name", ["a/b", "..", "memory.max", "framework", "ä", "", "x" * 300, "cgroup.procs", "a b"]
)
def test_names_are_safe_and_never_meet(name):
    made_name = cgroup_name(name)
    assert "/" not in made_name
    assert "." not in made_name
    assert len(made_name) <= 60
    assert made_name != cgroup_name(made_name)


def test_a_plain_name_stays():
    assert cgroup_name("alice-2_b") == "alice-2_b"


def test_the_disk_below_a_path(tmp_path):
    assert block_device(tmp_path / "absent") is None
    number = os.stat(tmp_path).st_dev
    place = tmp_path / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    place.mkdir(parents=True)
    found = block_device(tmp_path, tmp_path)
    assert found == (place.name if os.major(number) else None)
