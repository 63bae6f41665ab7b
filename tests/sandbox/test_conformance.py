"""What every kind of sandbox promises of a tool call, on every event loop."""

from __future__ import annotations

import anyio
import pytest

from agentrt.errors import (
    ConfigError,
    InvalidRequest,
    SandboxError,
    SandboxGone,
    ToolNotStarted,
    ToolTimeout,
)
from agentrt.sandbox import Limits, SandboxSpec

pytestmark = pytest.mark.anyio

NOISE = bytes(range(256)) * 8


@pytest.fixture
async def box(provider):
    async with await provider.create(SandboxSpec(env={"FROM_SPEC": "a b", "BOTH": "spec"})) as made:
        yield made


async def test_streams_are_separate_bytes(box):
    await box.write_file("noise", NOISE)
    done = await box.exec("cat noise; cat noise noise >&2; exit 7")
    assert (done.status, done.exit_code, done.ok) == ("exited", 7, False)
    assert done.stdout == NOISE
    assert done.stderr == NOISE * 2
    assert not done.stdout_truncated


async def test_sequence_is_not_interpreted(box):
    done = await box.exec(["printf", "%s|", "a b", "$HOME", "*", ""])
    assert done.check().stdout == b"a b|$HOME|*||"


async def test_environment_and_directory(box):
    await box.write_file("deep/er/file", b"x")
    done = await box.exec(
        'printf "%s,%s,%s," "$FROM_SPEC" "$BOTH" "$ODD"; pwd; ls',
        cwd="deep/er",
        env={"BOTH": "call", "ODD": "line\nbreak '\"$"},
    )
    first, _, rest = done.stdout.decode().partition("line\nbreak '\"$,")
    assert first == "a b,call,"
    assert rest.splitlines() == [f"{box.workdir}/deep/er", "file"]


async def test_our_environment_does_not_leak(box, monkeypatch):
    monkeypatch.setenv("AGENTRT_SECRET_OF_TEST", "leaked")
    done = await box.exec("env; cat /proc/$$/environ")
    assert b"leaked" not in done.stdout


async def test_stdin(box):
    assert (await box.exec("cat", stdin=NOISE * 200)).stdout == NOISE * 200
    assert (await box.exec("cat", stdin=b"")).stdout == b""
    assert (await box.exec("cat")).stdout == b""


async def test_stdin_that_nobody_reads(box):
    done = await box.exec("exit 3", stdin=b"x" * (1 << 20))
    assert done.exit_code == 3


async def test_output_is_cut_with_a_mark_and_drained(box):
    seen: list[bytes] = []
    done = await box.exec(
        "head -c 3000000 /dev/zero; echo err >&2", output_cap=1000, on_stdout=seen.append
    )
    assert done.exit_code == 0
    assert done.stdout == bytes(1000) + b"\n[agentrt: 2999000 bytes dropped]\n"
    assert done.stdout_truncated
    assert b"".join(seen) == bytes(1000)
    assert done.stderr == b"err\n"
    assert not done.stderr_truncated


async def test_output_arrives_while_the_command_runs(box):
    arrived = anyio.Event()
    result = []

    async def run() -> None:
        command = "echo first; while ! test -e go; do sleep 0.02; done; echo second"
        result.append(await box.exec(command, on_stdout=lambda _: arrived.set(), timeout=60))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await arrived.wait()
        await box.write_file("go", b"")
    assert result[0].stdout == b"first\nsecond\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exit 137", 137),
    ],
)
async def test_exit_codes(box, command, code):
    done = await box.exec(command)
    assert (done.status, done.exit_code) == ("exited", code)


@pytest.mark.parametrize("command", [["no-such-program"], ["./plain"], ["/proc"]])
async def test_what_cannot_start_says_so(box, command):
    await box.write_file("plain", b"not a program")
    with pytest.raises(ToolNotStarted) as failure:
        await box.exec(command)
    assert failure.value.remedy
    assert "agentrt-start" not in str(failure.value)


async def test_127_of_the_command_itself_is_a_result(box):
    done = await box.exec("no-such-program")
    assert (done.status, done.exit_code) == ("exited", 127)
    done = await box.exec(["sh", "-c", "echo 'agentrt-start-0: not found' >&2; exit 127"])
    assert (done.status, done.exit_code) == ("exited", 127)


async def test_missing_directory(box):
    with pytest.raises(ToolNotStarted, match="nowhere"):
        await box.exec("true", cwd="nowhere")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"command": []}, ToolNotStarted),
        ({"command": ""}, ToolNotStarted),
        ({"command": "a\0b"}, ToolNotStarted),
        ({"command": "true", "env": {"A=B": "c"}}, ToolNotStarted),
        ({"command": "true", "cwd": "a\0"}, ToolNotStarted),
        ({"command": "true", "timeout": 0.0}, InvalidRequest),
        ({"command": "true", "output_cap": -1}, InvalidRequest),
        ({"command": "true", "limits": Limits(memory=5)}, ConfigError),
        ({"command": "true", "limits": Limits(cpu=float("nan"))}, ConfigError),
        ({"command": "true", "limits": Limits(pids=0)}, ConfigError),
    ],
)
async def test_nonsense_is_refused(box, arguments, error):
    with pytest.raises(error):
        await box.exec(**arguments)
    assert (await box.exec("true")).ok


async def test_timeout_kills_all_that_resists(box, tracer):
    script = (
        f"trap '' TERM INT HUP; (trap '' TERM; setsid sleep {tracer.number}) & "
        f"(setsid sh -c 'sleep {tracer.number} & sleep {tracer.number}' &) ; sleep {tracer.number}"
    )
    done = await box.exec(f"echo before; {script}", timeout=2.0)
    assert (done.status, done.exit_code) == ("timeout", None)
    assert done.stdout == b"before\n"
    assert tracer.alive() == []
    with pytest.raises(ToolTimeout):
        done.check()


async def test_background_child_that_holds_the_pipe_does_not_hang(box, tracer):
    with anyio.fail_after(30):
        done = await box.exec(f"sleep {tracer.number} & echo done")
    assert (done.stdout, done.exit_code) == (b"done\n", 0)
    assert tracer.alive() == []


async def test_orphans_die_with_their_call(box, tracer):
    detached = f"setsid sh -c 'setsid sleep {tracer.number} & exit 0' </dev/null >/dev/null 2>&1"
    done = await box.exec(f"{detached} & wait; exit 5")
    assert done.exit_code == 5
    assert tracer.alive() == []


async def test_cancel_kills_first(box, tracer):
    async def run() -> None:
        await box.exec(f"trap '' TERM; sleep {tracer.number} & sleep {tracer.number}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await tracer.appears()
        tasks.cancel_scope.cancel()
    assert tracer.alive() == []
    assert (await box.exec("true")).ok


async def test_cancel_at_once(box):
    for delay in (0.0, 0.001, 0.005, 0.02, 0.05):
        with anyio.move_on_after(delay):
            await box.exec("sleep 1000")
    assert (await box.exec("true")).ok


async def test_calls_run_side_by_side(box):
    done = {}

    async def run(number: int) -> None:
        done[number] = await box.exec(["sh", "-c", f"sleep 0.1; echo {number}; exit {number}"])

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(run, number)
    assert {n: (r.exit_code, r.stdout) for n, r in done.items()} == {
        n: (n, b"%d\n" % n) for n in range(12)
    }


async def test_a_failing_callback_ends_the_call(box, tracer):
    def fail(data: bytes) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        await box.exec(f"echo x; sleep {tracer.number}", on_stdout=fail)
    assert tracer.alive() == []


async def test_check_raises_for_a_failure(box):
    done = await box.exec("echo why >&2; exit 9")
    with pytest.raises(SandboxError, match="exit code 9: why"):
        done.check()


async def test_private_tmp_lasts_between_calls(box):
    await box.exec('echo kept > "$TMPDIR/x"')
    assert (await box.exec('cat "$TMPDIR/x"')).stdout == b"kept\n"


async def test_source_is_copied_links_and_all(provider, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "inner" / "run.sh").chmod(0o4755)
    (tmp_path / "link").symlink_to("/etc/hostname")
    async with await provider.create(SandboxSpec(source=tmp_path)) as box:
        assert (await box.exec(["./inner/run.sh"])).stdout == b"ran\n"
        assert (await box.exec(["readlink", "link"])).stdout == b"/etc/hostname\n"
        assert (await box.exec(["stat", "-c", "%a", "inner/run.sh"])).stdout == b"755\n"
        await box.exec("echo changed > inner/run.sh")
    assert "echo ran" in (tmp_path / "inner" / "run.sh").read_text()


async def test_source_that_is_no_directory(provider, tmp_path):
    with pytest.raises(ConfigError):
        await provider.create(SandboxSpec(source=tmp_path / "absent"))


async def test_closed_means_gone(provider, tracer):
    box = await provider.create(SandboxSpec())
    failures = []

    async def run() -> None:
        with pytest.raises(SandboxGone) as failure:
            await box.exec(f"sleep {tracer.number}")
        failures.append(failure.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await tracer.appears()
        await box.close()
    assert len(failures) == 1
    assert tracer.alive() == []
    await box.close()
    for call in (box.exec("true"), box.read_file("x"), box.write_file("x", b"")):
        with pytest.raises(SandboxGone):
            await call
