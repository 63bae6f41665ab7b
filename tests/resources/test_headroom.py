"""How much memory may be taken: cgroups of both versions, read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrt.resources.cgroup.layout import Hierarchy, Layout
from agentrt.resources.headroom import cgroup_headroom, memory_headroom

MIB = 2**20


def group(directory: Path, version: int, limit: str, used: int, cache: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\nother 7\n")


def layout(mount: Path, own: Path, version: int) -> Layout:
    names = frozenset({"memory"}) if version == 1 else frozenset()
    return Layout((Hierarchy(version, mount, own, names),))


@pytest.mark.parametrize("version", [1, 2])
class TestCgroups:
    def test_the_cache_that_can_go_counts_as_free(self, tmp_path: Path, version: int) -> None:
        own = tmp_path / "a"
        group(own, version, str(100 * MIB), 70 * MIB, 10 * MIB)
        (found,) = cgroup_headroom(layout(tmp_path, own, version))
        assert found.bytes == 40 * MIB
        assert str(own) in found.bound

    def test_the_tightest_of_all_levels_decides(self, tmp_path: Path, version: int) -> None:
        own = tmp_path / "a" / "b"
        group(own, version, str(100 * MIB), 1 * MIB, 0)
        group(tmp_path / "a", version, str(20 * MIB), 15 * MIB, 0)
        found = memory_headroom(layout(tmp_path, own, version))
        assert found.bytes == 5 * MIB
        assert found.bound == f"left below the memory limit of {tmp_path / 'a'}"

    def test_no_limit_is_no_bound(self, tmp_path: Path, version: int) -> None:
        none = "max" if version == 2 else str(2**63 - 4096)
        group(tmp_path / "a", version, none, 10, 0)
        assert list(cgroup_headroom(layout(tmp_path, tmp_path / "a", version))) == []

    def test_more_in_use_than_the_limit_leaves_nothing(self, tmp_path: Path, version: int) -> None:
        group(tmp_path, version, "100", 300, 0)
        (found,) = cgroup_headroom(layout(tmp_path, tmp_path, version))
        assert found.bytes == 0


def test_without_cgroups_the_machine_decides() -> None:
    found = memory_headroom(Layout())
    assert found.bound == "free on this machine"
    assert found.bytes > 0
    assert 0 < memory_headroom().bytes <= 2 * found.bytes
