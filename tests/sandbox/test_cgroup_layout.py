"""Reading the machine's cgroup layout from the texts that the kernel writes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agentrt.resources.cgroup import flat_counters, parse_layout, read_layout, settings
from agentrt.sandbox import Limits

V2 = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
24 1 0:22 / / rw - ext4 /dev/vda rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_v2():
    layout = parse_layout(V2, "0::/user.slice/session-1.scope\n")
    assert layout.kind == "v2"
    assert layout.v2.own == Path("/sys/fs/cgroup/user.slice/session-1.scope")
    assert layout.v1("memory") is None


def test_hybrid():
    own = "4:memory:/box/abc\n1:cpu,cpuacct:/\n8:pids:/box\n9:name=systemd:/\n0::/init\n"
    layout = parse_layout(HYBRID, own)
    assert layout.kind == "hybrid"
    assert layout.v1("memory").own == Path("/sys/fs/cgroup/memory/box/abc")
    assert layout.v1("cpu") is layout.v1("cpuacct")
    assert layout.v1("pids").own == Path("/sys/fs/cgroup/pids/box")
    assert layout.v2.own == Path("/sys/fs/cgroup/unified/init")
    assert layout.v1("rw") is None


def test_v1_and_none():
    v1_only = "".join(line for line in HYBRID.splitlines(True) if "cgroup2" not in line)
    assert parse_layout(v1_only, "").kind == "v1"
    assert parse_layout("", "").kind == "none"
    assert parse_layout("24 1 0:22 / / rw - ext4 /dev/vda rw\n", "").kind == "none"


def test_v2_beside_a_v1_without_limits_is_v2():
    named = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    assert parse_layout(named + V2, "").kind == "v2"


def test_inside_a_container():
    """A mount that shows only a part of the hierarchy: paths are cut, or fall back to the mount."""
    mount = "30 24 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    layout = parse_layout(mount, "4:memory:/docker/abc/inner\n")
    assert layout.v1("memory").own == Path("/sys/fs/cgroup/memory/inner")
    layout = parse_layout(mount, "4:memory:/elsewhere\n")
    assert layout.v1("memory").own == Path("/sys/fs/cgroup/memory")
    layout = parse_layout(V2, "0::/../sibling\n")
    assert layout.v2.own == Path("/sys/fs/cgroup")


def test_escaped_and_repeated_mounts():
    text = V2.replace("/sys/fs/cgroup", "/odd\\040place") + V2
    assert [h.mount for h in parse_layout(text, "").hierarchies] == [Path("/odd place")]


def test_read_layout_of_a_machine_that_shows_nothing(tmp_path):
    assert read_layout(tmp_path).kind == "none"


@given(st.text())
def test_any_text_parses(text):
    parse_layout(text, text)
    flat_counters(text)


@given(
    memory=st.none() | st.integers(1 << 20, 1 << 50),
    cpu=st.none() | st.floats(1e-6, 1e4),
    pids=st.none() | st.integers(1, 1 << 22),
    version=st.sampled_from([1, 2]),
)
def test_every_limit_is_written_and_nothing_else(memory, cpu, pids, version):
    writes = settings(Limits(memory, cpu, pids), version)
    asked = {"memory": memory, "cpu": cpu, "pids": pids}
    hard = {write.controller for write in writes if not write.optional}
    assert hard == {name for name, value in asked.items() if value is not None}
    quota = [w.value.split()[0] for w in writes if w.file in ("cpu.max", "cpu.cfs_quota_us")]
    assert all(int(value) >= 1000 for value in quota)


def test_flat_counters():
    assert flat_counters("low 0\noom_kill 3\nodd\nmax max\n") == {"low": 0, "oom_kill": 3}
    assert flat_counters(None) == {}
