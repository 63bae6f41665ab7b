"""The gate of a Docker exec, against processes that do not behave."""

from __future__ import annotations

import subprocess

import anyio
import pytest

from agentrt.errors import ToolNotStarted
from agentrt.sandbox.gate import Gated, pass_gate

pytestmark = pytest.mark.anyio


def stopped_shell(script: str) -> subprocess.Popen:
    return subprocess.Popen(["/bin/sh", "-c", script])


async def gate(child: subprocess.Popen, directories, container: str = "", seconds: float = 20.0):
    async def pid() -> int:
        return child.pid

    return await pass_gate(pid, container, directories, seconds=seconds)


async def test_a_shell_that_stops_is_moved_and_goes_on(tmp_path):
    with stopped_shell("kill -STOP $$; exit 7") as child:
        (tmp_path / "cgroup.procs").write_text("")
        gated = await gate(child, [tmp_path])
        assert await anyio.to_thread.run_sync(child.wait) == 7
        assert (tmp_path / "cgroup.procs").read_text() == str(child.pid)
        gated.close()


@pytest.mark.parametrize(
    ("script", "container", "said"),
    [
        ("kill -STOP $$; exit 7", "not-its-container", "not the container's"),
        ("exit 0", "", "ended before its gate"),
        ("exec sleep 1000", "", "did not stop"),
    ],
)
async def test_one_that_does_not_behave_is_killed(tmp_path, script, container, said):
    (tmp_path / "cgroup.procs").write_text("")
    with stopped_shell(script) as child:
        with pytest.raises(ToolNotStarted, match=said):
            await gate(child, [tmp_path], container, seconds=1.0)
        assert await anyio.to_thread.run_sync(child.wait) in (0, -9)
    assert (tmp_path / "cgroup.procs").read_text() == ""


async def test_a_cgroup_that_refuses(tmp_path):
    with stopped_shell("kill -STOP $$; exit 7") as child:
        with pytest.raises(ToolNotStarted, match="cannot be moved"):
            await gate(child, [tmp_path / "absent"])
        assert await anyio.to_thread.run_sync(child.wait) == -9


async def test_a_move_that_does_not_show_is_not_believed(tmp_path):
    """A directory that loses what is written stands for a process that left meanwhile."""
    (tmp_path / "cgroup.procs").symlink_to("/dev/null")
    with stopped_shell("kill -STOP $$; exit 7") as child:
        with pytest.raises(ToolNotStarted, match="left its gate"):
            await gate(child, [tmp_path])
        assert await anyio.to_thread.run_sync(child.wait) == -9


async def test_a_process_that_never_comes():
    async def nobody() -> int:
        return 0

    with pytest.raises(ToolNotStarted, match="did not stop"):
        await pass_gate(nobody, "", [], seconds=0.2)


async def test_cancelled_at_the_gate_leaves_no_process(tmp_path):
    with stopped_shell("exec sleep 1000") as child:
        with anyio.move_on_after(0.2):
            await gate(child, [tmp_path])
        assert await anyio.to_thread.run_sync(child.wait) == -9


async def test_a_signal_never_meets_a_reused_number():
    with stopped_shell("exit 0") as child:
        gated = Gated(child.pid)
        await anyio.to_thread.run_sync(child.wait)
        gated.signal(9)
        assert gated.state() == "X"
        gated.close()
