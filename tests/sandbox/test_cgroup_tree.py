"""A run's cgroups on fake machines of every layout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentrt.resources.cgroup import CgroupFiles, CgroupTree, clear_run
from agentrt.sandbox import Limits
from tests.sandbox.fake_cgroups import fake_machine

ASKED = Limits(memory=1 << 26, cpu=0.5, pids=10)
EXPECTED = {
    "v1": {
        "memory.limit_in_bytes": "67108864",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
        "pids.max": "12",
    },
    "v2": {"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "12"},
}
EXPECTED["hybrid"] = EXPECTED["v1"]


def opened(files, run_id: str = "r1") -> CgroupTree:
    tree = CgroupTree(run_id, files.layout, files)
    tree.open()
    return tree


def directories(place: Path) -> set[str]:
    """All that the tree could have made: anything with our name in it."""
    return {
        str(p.relative_to(place))
        for p in place.rglob("*")
        if p.is_dir() and "agentrt" in str(p.relative_to(place))
    }


@pytest.mark.parametrize("kind", ["v1", "v2", "hybrid"])
def test_a_tool_has_its_limits_and_goes(tmp_path, kind):
    files = fake_machine(tmp_path, kind)
    tree = opened(files)
    group = tree.tool("s1", "tool-1", ASKED, spare_pids=2)
    assert group.unenforced == ()
    found = {
        name: (path / name).read_text()
        for path in group.paths
        for name in EXPECTED[kind]
        if (path / name).exists()
    }
    assert found == EXPECTED[kind]
    assert all(path.parts[-4:] == ("agentrt", "r1", "s1", "tool-1") for path in group.paths)
    assert group.remove()
    assert tree.drop_sandbox("s1")
    assert tree.close()
    assert directories(tmp_path) == set()


@pytest.mark.parametrize(
    ("kind", "peak", "seconds", "pids", "oom", "refused"),
    [("v1", 4096, 2.5, 3, 2, 5), ("v2", 8192, 1.5, 4, 1, 6), ("hybrid", 4096, 1.5, 3, 2, 5)],
)
def test_counters_come_from_the_right_tree(tmp_path, kind, peak, seconds, pids, oom, refused):
    counters = opened(fake_machine(tmp_path, kind)).tool("s", "t", ASKED).counters()
    assert (counters.peak_memory, counters.cpu_seconds) == (peak, seconds)
    assert (counters.peak_pids, counters.oom_kills, counters.pids_refused) == (pids, oom, refused)


def test_no_permission_anywhere(tmp_path):
    files = fake_machine(tmp_path, "hybrid")
    files.refuse = {tmp_path}
    tree = opened(files)
    assert tree.branches == ()
    group = tree.tool("s", "t", ASKED)
    assert [line.partition(":")[0] for line in group.unenforced] == ["memory", "cpu", "pids"]
    assert all("systemd-run" in line for line in group.unenforced)
    assert group.procs == ()
    assert tree.close()


def test_a_machine_without_cgroups():
    tree = CgroupTree("r1", fake_machine(Path("/nonexistent"), "none").layout)
    tree.open()
    assert tree.tool("s", "t", Limits()).unenforced == ()
    assert len(tree.tool("s", "t", ASKED).unenforced) == 3


@pytest.mark.parametrize("place", ["parent", "own"])
def test_below_our_own_cgroup_where_the_top_is_closed(tmp_path, place):
    files = fake_machine(tmp_path, "v2")
    mount, own = files.layout.v2.mount, files.layout.v2.own
    (own.parent / "cgroup.controllers").write_text("memory pids")
    (own / "cgroup.controllers").write_text("memory pids")
    files.refuse = {mount / "agentrt"}
    if place == "own":
        files.unjoinable = {own.parent / "agentrt"}
    tree = opened(files)
    base = own if place == "own" else own.parent
    assert tree.run_paths == (base / "agentrt" / "r1",)
    group = tree.tool("s", "t", ASKED)
    assert [line.partition(":")[0] for line in group.unenforced] == ["cpu"]
    assert group.remove()
    assert tree.drop_sandbox("s")
    assert tree.close()
    assert directories(tmp_path) == set()


def test_one_hierarchy_refuses(tmp_path):
    files = fake_machine(tmp_path, "hybrid")
    files.refuse = {tmp_path / "memory"}
    group = opened(files).tool("s", "t", ASKED)
    assert len(group.unenforced) == 1
    assert group.unenforced[0].startswith("memory: ")
    assert "Permission denied" in group.unenforced[0]


def test_kill_stops_forks_first_and_takes_all(tmp_path):
    files = fake_machine(tmp_path, "v1")
    group = opened(files).tool("s", "t", ASKED)
    for path in group.paths:
        (path / "cgroup.procs").write_text("900001\n900002\n0\n")
    assert group.populated()
    files.written.clear()
    group.kill()
    assert files.killed == [900001, 900002]
    assert [value for path, value in files.written if path.name == "pids.max"] == ["0"]


def test_v2_kill_file_is_used(tmp_path):
    files = fake_machine(tmp_path, "hybrid")
    group = opened(files).tool("s", "t", Limits())
    group.kill()
    assert [path.parent.name for path, value in files.written if path.name == "cgroup.kill"] == [
        "t"
    ]
    assert files.killed == []
    (group.paths[-1] / "cgroup.events").write_text("populated 1\n")
    assert group.populated()


def test_busy_is_said_not_raised(tmp_path):
    files = fake_machine(tmp_path, "v1")
    tree = opened(files)
    group = tree.tool("s", "t", Limits())
    files.busy = {group.paths[0]}
    assert not group.remove()
    files.busy = set()
    assert group.remove()


def test_two_runs_share_the_parent(tmp_path):
    files = fake_machine(tmp_path, "hybrid")
    first, second = opened(files, "r1"), opened(files, "r2")
    group = second.tool("s", "t", Limits())
    assert first.close()
    assert all(path.exists() for path in group.paths)
    assert group.remove()
    assert second.drop_sandbox("s")
    assert second.close()
    assert directories(tmp_path) == set()


def test_clear_run_takes_the_dead_run_only(tmp_path):
    files = fake_machine(tmp_path, "hybrid")
    dead, live = opened(files, "rdead"), opened(files, "rlive")
    victim, neighbour = dead.tool("s", "t", Limits()), live.tool("s", "t", Limits())
    for path in victim.paths:
        (path / "cgroup.procs").write_text("900001\n")
    outside = [tmp_path / "unified" / "agentrt" / "rlive", Path("/"), tmp_path / "rdead"]
    pids, gone = clear_run("rdead", files.layout, [*dead.run_paths, *outside], files)
    assert (pids, gone) == ([900001], True)
    assert not any(path.exists() for path in victim.paths)
    assert all(path.exists() for path in neighbour.paths)


def test_write_never_creates_a_file(tmp_path):
    error = CgroupFiles().write(tmp_path / "memory.max", "1")
    assert isinstance(error, FileNotFoundError)
    assert os.listdir(tmp_path) == []


def test_can_join_is_tried(tmp_path):
    files = CgroupFiles()
    assert files.can_join(tmp_path / "absent") is not None
    (tmp_path / "cgroup.procs").write_text("")
    assert files.can_join(tmp_path) is None
    assert (tmp_path / "cgroup.procs").read_text() == "0\n"
