"""What a command in a confining sandbox cannot see, reach or change."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import anyio
import pytest

from agentrt.sandbox import SandboxSpec
from agentrt.sandbox.host import FILES_A_SLOT
from tests.sandbox.conftest import CONFINING

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("combination", CONFINING, indirect=True),
]


@pytest.fixture
async def box(provider):
    async with await provider.create(SandboxSpec()) as made:
        yield made


async def test_no_network(box):
    done = await box.exec("cat /proc/net/dev /proc/net/route")
    names = [
        line.split(":")[0].strip() for line in done.stdout.decode().splitlines() if ":" in line
    ]
    assert names == ["lo"]


async def test_the_system_is_read_only(box):
    done = await box.exec(
        "for d in / /usr /usr/bin /etc /lib; do touch $d/x && echo wrote $d; done"
    )
    assert done.stdout == b""


async def test_host_secrets_are_not_there(box):
    secret = Path(tempfile.gettempdir()) / "secret-of-the-host"
    secret.write_text("leaked")
    try:
        done = await box.exec(
            f"cat /etc/shadow {secret} /root/.bashrc /var/run/docker.sock; ls /home /root"
        )
    finally:
        secret.unlink()
    assert b"leaked" not in done.stdout
    assert b"root:" not in done.stdout


async def test_other_processes_are_not_there(box, tracer):
    ours = str(os.getpid())
    done = await box.exec("ls /proc; kill -0 1 2>&1 || true", env={"X": tracer.number})
    numbers = [word for word in done.stdout.decode().split() if word.isdigit()]
    assert len(numbers) < 15
    assert (await box.exec(f"test -e /proc/{ours}/root/etc/passwd")).exit_code != 0


async def test_no_capability_and_no_new_privilege(box):
    done = await box.exec("cat /proc/self/status")
    found = dict(line.split(":", 1) for line in done.stdout.decode().splitlines() if ":" in line)
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0
    assert found["NoNewPrivs"].strip() == "1"
    assert found["Uid"].split()[0] != "0"


async def test_mounting_is_refused(box):
    done = await box.exec("mount -t tmpfs none /work; mount -o remount,rw /usr; touch /usr/x")
    assert done.exit_code != 0


async def test_calls_do_not_see_each_other_outside(box):
    """The cgroup file system and the names of other runs stay out of sight."""
    done = await box.exec(
        "ls /sys/fs/cgroup/memory/agentrt /sys/fs/cgroup/agentrt; mkdir /sys/fs/cgroup/x"
    )
    assert b"tool-" not in done.stdout
    assert done.exit_code != 0


async def test_variables_of_the_call_stay_inside(box, tracer):
    """What runs outside must not see them: LD_PRELOAD there would run the call's code unconfined.

    Nor may they stand in a command line, which every user of the machine can read.
    """
    secret = f"/work/{tracer.number}.so"

    async def run() -> None:
        variables = {"LD_PRELOAD": secret, "BASH_ENV": secret, "ENV": secret}
        await box.exec(f"sleep {tracer.number}", env=variables)

    outside, shown = 0, []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await tracer.appears()
        for path in Path("/proc").glob("[0-9]*"):
            environ, words, same_root = _look(path)
            if secret.encode() in words:
                shown.append(path.name)
            if secret.encode() in environ and same_root:
                outside += 1
        tasks.cancel_scope.cancel()
    assert shown == []
    assert outside == 0


def _look(path: Path) -> tuple[bytes, bytes, bool]:
    """A process's environment and command line, and whether it sees the machine's own files."""
    try:
        same_root = os.stat(path / "ns" / "mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino
        return (path / "environ").read_bytes(), (path / "cmdline").read_bytes(), same_root
    except OSError:
        return b"", b"", False


async def test_host_network_when_asked(provider):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        async with await provider.create(SandboxSpec(network="host")) as box:
            done = await box.exec(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected")
        async with await provider.create(SandboxSpec()) as box:
            refused = await box.exec(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected")
    assert done.stdout == b"connected\n"
    assert refused.stdout == b""


async def test_readable_paths_show_and_stay_read_only(provider, tmp_path_factory):
    # Not below /tmp, which is private inside.
    place = Path("/usr/local/share") / f"agentrt-test-{os.getpid()}"
    place.mkdir()
    try:
        (place / "file").write_text("shown")
        async with await provider.create(SandboxSpec(readable=(place,))) as box:
            done = await box.exec(f"cat {place}/file; touch {place}/new")
        assert done.stdout == b"shown"
        assert not (place / "new").exists()
    finally:
        (place / "file").unlink()
        place.rmdir()


async def test_a_hundred_calls_leave_no_descriptor(box):
    limiter = anyio.CapacityLimiter(8)
    empty = len(os.listdir("/proc/self/fd"))

    async def run() -> None:
        async with limiter:
            assert (await box.exec("true")).ok

    async def run_all(count: int) -> int:
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(run)
        return len(os.listdir("/proc/self/fd"))

    # Connections to an engine are kept for reuse, and so are the files of some cgroups.
    before = await run_all(16)
    after = await run_all(84 if box.kind == "bubblewrap" else 24)
    assert after <= before + 8 * FILES_A_SLOT + (0 if box.kind == "bubblewrap" else 8)
    await box.close()
    left = len(os.listdir("/proc/self/fd"))
    assert left <= empty if box.kind == "bubblewrap" else left <= before
