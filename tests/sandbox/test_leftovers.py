"""Nothing is left: after close, after Ctrl-C, and after kill -9 followed by the next start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from agentrt.sandbox import RunState, SandboxSpec, choose, make_provider, reap, reap_containers
from agentrt.sandbox.reaper import reap_now
from tests.sandbox.conftest import ONE_LOOP, REPOSITORY, cgroups_of

each_kind = pytest.mark.parametrize("combination", ONE_LOOP, indirect=True)

RUNNER = """
import sys, anyio
from agentrt.sandbox import SandboxSpec, make_provider

async def main(kind, number, image):
    async with make_provider(kind, image=image or None) as provider:
        async with await provider.create(SandboxSpec()) as box:
            print(provider._host.state.run_id, flush=True)
            hidden = f"setsid sh -c 'setsid sleep {number} & exec sleep {number}' >/dev/null 2>&1 &"
            await box.exec(f"{hidden} trap '' TERM INT; sleep {number}")

anyio.run(main, *sys.argv[1:4])
"""


def containers_of(run_id: str) -> list[str]:
    """Ids of a run's containers."""
    from agentrt.sandbox.docker_api import LABEL_RUN, connect

    api = connect()
    found = api.containers(all=True, filters={"label": [f"{LABEL_RUN}={run_id}"]})
    api.close()
    return [str(container["Id"]) for container in found]


@contextmanager
def running(kind: str, tracer, image: str):
    """Another process in the middle of a tool call."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": tempfile.gettempdir()}
    words = [sys.executable, "-c", RUNNER, kind, tracer.number, image]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env, text=True) as process:
        try:
            run_id = process.stdout.readline().strip()
            assert run_id
            for _ in range(2000):
                # the hidden pair and the command itself
                if len(tracer.alive()) >= 3:
                    break
                time.sleep(0.01)
            yield process, run_id
        finally:
            process.kill()


@pytest.fixture
def image(kind, request) -> str:
    return request.getfixturevalue("test_image") if kind == "docker" else ""


@pytest.mark.anyio
async def test_close_leaves_nothing(provider, own_state, tracer, kind):
    async def abandon(box) -> None:
        with pytest.raises(Exception, match="closed"):
            await box.exec(f"setsid sleep {tracer.number} & sleep {tracer.number}")

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            box = await provider.create(SandboxSpec())
            await box.exec("mkdir -p a/b; touch a/b/c; chmod 0 a/b a")
            tasks.start_soon(abandon, box)
        await tracer.appears()
        run_id = provider._host.state.run_id
        await provider.close()
    assert tracer.alive() == []
    assert cgroups_of(run_id) == []
    assert list(own_state.iterdir()) == []
    if kind == "docker":
        assert containers_of(run_id) == []


@each_kind
def test_ctrl_c_leaves_nothing(kind, tracer, image, own_state):
    with running(kind, tracer, image) as (process, run_id):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    assert tracer.alive() == []
    assert cgroups_of(run_id) == []
    assert list(own_state.iterdir()) == []


@each_kind
@pytest.mark.requires_root
def test_kill_9_then_the_next_start(kind, tracer, image, own_state):
    with running(kind, tracer, image) as (process, run_id):
        alive = reap_now(containers=reap_containers)
        assert alive.live == [run_id]
        assert alive.runs == []
        assert len(tracer.alive()) >= 3
        process.kill()
        process.wait(timeout=60)
    report = reap_now(containers=reap_containers)
    assert report.runs == [run_id]
    assert report.failed == []
    assert tracer.alive() == []
    assert cgroups_of(run_id) == []
    assert list(own_state.iterdir()) == []
    if kind == "docker":
        assert containers_of(run_id) == []


@pytest.mark.anyio
async def test_choose_reaps_first(own_state):
    dead = _dead_run(own_state)
    async with (await choose("process")).provider:
        assert not dead.temp.exists()
        assert not dead.path.exists()


@pytest.mark.anyio
async def test_a_state_handed_in_outlives_its_providers(own_state):
    with RunState.open() as state:
        for _ in range(2):
            async with (
                make_provider("process", state=state) as provider,
                await provider.create(SandboxSpec()) as box,
            ):
                assert (await box.exec("true")).ok
            assert state.path.exists()
            assert cgroups_of(state.run_id) == []
    assert list(own_state.iterdir()) == []


@pytest.mark.anyio
async def test_reap_of_nothing():
    report = await reap(sweep=False)
    assert (report.runs, report.live, report.failed) == ([], [], [])


def test_a_directory_whose_record_is_lost(own_state):
    dead = _dead_run(own_state)
    dead.path.unlink()
    report = reap_now()
    assert report.runs == [dead.run_id]
    assert not dead.temp.exists()
    dead.directory.rmdir()


def test_a_forged_record_reaches_nothing_else(own_state, tmp_path):
    """A record names paths; only those that are the run's own by name and place are touched."""
    dead = _dead_run(own_state)
    (tmp_path / "precious").mkdir()
    record = json.loads(dead.path.read_text())
    kept = record["temp"]
    record["temp"] = str(tmp_path / "precious")
    record["cgroups"] = [str(tmp_path / "agentrt" / dead.run_id), "/"]
    (tmp_path / "agentrt" / dead.run_id).mkdir(parents=True)
    dead.path.write_text(json.dumps(record))
    (Path(kept) / "owner.json").unlink()
    reap_now()
    assert (tmp_path / "precious").exists()
    assert (tmp_path / "agentrt" / dead.run_id).exists()
    Path(kept).rmdir()


def _dead_run(own_state: Path) -> RunState:
    """A run whose owner is this process with another start time: a reused number."""
    state = RunState.open()
    for path in (state.path, state.temp / "owner.json"):
        record = json.loads(path.read_text())
        record["owner"]["start"] += 1
        path.write_text(json.dumps(record))
    (own_state / "records").mkdir(exist_ok=True)
    return state
