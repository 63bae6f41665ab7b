"""The small parts: captured output, Docker's frames, trees, results, options."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError, SandboxError, ToolOutOfMemory, ToolTimeout
from agentrt.resources.cgroup import Counters
from agentrt.sandbox import ExecResult, Limits, ResourceUsage, SandboxSpec
from agentrt.sandbox.bubblewrap import View, bwrap_options
from agentrt.sandbox.common import merge_limits, status_of
from agentrt.sandbox.docker_api import container_config, labels_for
from agentrt.sandbox.launcher import joined_argv, joined_command
from agentrt.sandbox.output import Capture, Demultiplexer
from agentrt.sandbox.state import Owner
from agentrt.sandbox.supervise import Ended
from agentrt.sandbox.tracked import descendants
from agentrt.sandbox.trees import copy_tree, remove_tree

CHUNKS = st.lists(st.binary(max_size=50), max_size=20)


@given(CHUNKS, st.integers(0, 200))
def test_capture_keeps_the_first_bytes_and_counts_the_rest(chunks, cap):
    seen: list[bytes] = []
    capture = Capture(cap, seen.append)
    for chunk in chunks:
        capture.feed(chunk)
    whole = b"".join(chunks)
    assert b"".join(seen) == whole[:cap]
    assert capture.head == whole[:4096]
    assert capture.truncated == (len(whole) > cap)
    if capture.truncated:
        mark = f"\n[agentrt: {len(whole) - cap} bytes dropped]\n".encode()
        assert capture.value() == whole[:cap] + mark
    else:
        assert capture.value() == whole


@given(st.lists(st.tuples(st.integers(1, 2), st.binary(max_size=40)), max_size=10), st.data())
def test_frames_survive_any_cut(frames, data):
    stream = b"".join(
        bytes([number, 0, 0, 0]) + len(load).to_bytes(4, "big") + load for number, load in frames
    )
    demultiplexer, found = Demultiplexer(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += demultiplexer.feed(stream[:cut])
        stream = stream[cut:]
    assert found == frames


@given(CHUNKS, st.binary(min_size=1, max_size=4))
def test_what_is_set_aside_is_all_or_nothing(chunks, aside):
    seen: list[bytes] = []
    capture = Capture(1000, seen.append, aside=aside)
    for chunk in chunks:
        capture.feed(chunk)
    capture.finish()
    whole = b"".join(chunks)
    assert capture.value() == whole
    assert b"".join(seen) == (b"" if whole.startswith(aside) else whole)


def test_a_header_inside_a_payload_is_payload():
    forged = bytes([2, 0, 0, 0, 0, 0, 0, 1]) + b"x"
    frame = bytes([1, 0, 0, 0]) + len(forged).to_bytes(4, "big") + forged
    assert list(Demultiplexer().feed(frame)) == [(1, forged)]


def result(status, code, **more) -> ExecResult:
    return ExecResult(status, code, b"", b"reason", False, False, 1.5, ResourceUsage(**more))


def test_each_outcome_has_its_error():
    assert result("exited", 0).check().ok
    with pytest.raises(ToolTimeout, match=r"1\.5 s"):
        result("timeout", None).check()
    with pytest.raises(ToolOutOfMemory, match="2 MiB"):
        result("out_of_memory", 137, peak_memory=2 << 20).check()
    with pytest.raises(SandboxError, match="exit code 3: reason"):
        result("exited", 3).check()
    with pytest.raises(SandboxError, match="cancelled"):
        result("cancelled", None).check()


@pytest.mark.parametrize(
    ("code", "oom", "status"),
    [
        (0, 0, "exited"),
        (137, 0, "exited"),
        (137, None, "exited"),
        (137, 1, "out_of_memory"),
        (1, 1, "out_of_memory"),
        (0, 1, "exited"),
        (None, 1, "timeout"),
        (None, 0, "timeout"),
    ],
)
def test_status(code, oom, status):
    assert status_of(Ended(code, True, 1.0, Counters(oom_kills=oom), True)) == status


def test_limits_of_a_call_come_before_the_defaults():
    assert merge_limits(Limits(1, 2.0, 3), None) == Limits(1, 2.0, 3)
    assert merge_limits(Limits(1, 2.0, 3), Limits(cpu=5.0)) == Limits(1, 5.0, 3)


@given(st.dictionaries(st.integers(2, 30), st.integers(1, 30)))
def test_descendants_end_on_any_table(parents):
    found = descendants({1}, parents)
    assert all(pid == 1 or parents[pid] in found for pid in found)


def test_remove_tree_that_resists(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / ("n" * 255)).write_text("")
    (root / "new\nline").mkdir()
    # Deeper than the longest path and than Python recurses.
    here = os.open(root, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d" * 10, dir_fd=here)
        inner = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.chmod("d" * 10, 0, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert remove_tree(root)
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert remove_tree(root)


def test_remove_tree_of_a_link_takes_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert remove_tree(tmp_path / "link")
    assert (tmp_path / "real").is_dir()


def test_copy_tree(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    target.mkdir()
    (source / "inner" / "file").write_text("x")
    (source / "inner" / "file").chmod(0o4751)
    (source / "dangling").symlink_to("/absent/place")
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
    copy_tree(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["dangling", "inner"]
    assert os.readlink(target / "dangling") == "/absent/place"
    assert stat.S_IMODE((target / "inner" / "file").stat().st_mode) == 0o751


def pairs(options: list[str], flag: str) -> list[str]:
    return [options[i + 1] for i, word in enumerate(options) if word == flag]


def test_bubblewrap_options_confine():
    options = bwrap_options(View(Path("/top"), disable_userns=True), [("A", "b c")])
    for word in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{word}" in options
    assert {"--die-with-parent", "--new-session", "--clearenv", "--disable-userns"} <= set(options)
    assert pairs(options, "--cap-drop") == ["ALL"]
    assert pairs(options, "--bind") == ["/top/tmp", "/top/work"]
    assert not any(
        "shadow" in word or word in ("/", "/root", "/home") for word in pairs(options, "--ro-bind")
    )
    assert options[-3:] == ["--setenv", "A", "b c"]


def test_bubblewrap_with_the_host_network_and_more_to_read():
    view = View(Path("/top"), host_network=True, readable=(Path("/opt/tools"),))
    options = bwrap_options(view, [])
    assert "--unshare-net" not in options
    assert "/opt/tools" in pairs(options, "--ro-bind")
    assert "/etc/resolv.conf" in pairs(options, "--ro-bind-try")


def test_a_container_is_hardened():
    spec = SandboxSpec(image="x", readable=(Path("/opt"),))
    config = container_config(spec, "x", Path("/top/work"), {"a": "b"}, "/agentrt/r/s")
    host = config["host"]
    assert config["user"] == "65534:65534"
    assert host["cap_drop"] == ["ALL"]
    assert host["security_opt"] == ["no-new-privileges:true"]
    assert host["network_mode"] == "none"
    assert host["read_only"] is host["init"] is True
    assert host["memswap_limit"] == host["mem_limit"]
    assert host["binds"] == ["/top/work:/work:rw", "/opt:/opt:ro"]
    assert not {"privileged", "devices", "cap_add"} & host.keys()
    assert "docker.sock" not in str(config)


def test_labels_are_ours_to_trust():
    owner = Owner(1, 2, "boot", 3)
    labels = labels_for("r1", owner, "s1", {"tenant": "a"})
    assert labels["tenant"] == "a"
    assert Owner.parse(labels["agentrt.owner"]) == owner
    with pytest.raises(ConfigError, match="reserved"):
        labels_for("r1", owner, "s1", {"agentrt.owner": "9:9:x:9"})


def test_joining_writes_every_file_and_leaves_the_environment_alone(tmp_path):
    procs = tuple(tmp_path / name for name in ("a", "b"))
    own = {"count": "5", "PATH": "/usr/bin:/bin"}
    say = ["/bin/sh", "-c", 'echo "$count $1"', "say", "--"]
    starts = (joined_argv(procs, say), joined_command(procs, say, str(tmp_path), "word"))
    for argv in starts:
        for path in procs:
            path.write_text("")
        with open(tmp_path / "status", "wb") as status:
            done = subprocess.run(
                ["/bin/sh", "-c", 'exec "$@" 9>&1 >&2', "outer", *argv],
                env=own,
                stdout=status,
                stderr=subprocess.PIPE,
                check=True,
                timeout=30,
            )
        assert done.stderr == b"5 --\n"
        assert [path.read_text() for path in procs] == ["0\n", "0\n"]
