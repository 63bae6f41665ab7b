"""Several ranks through the runtime and the command line: the same answers, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.model.make import make_model
from agentrt.errors import ConfigError
from agentrt.ranks import rank_devices

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory), pool_tokens=512, page_size=4, sandbox=None, threads=2, device="cpu"
    )


def ranks_of(parent: int) -> list[int]:
    """Return the processes of ranks that a process has started."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        if "agentrt.engine.parallel.rank" in " ".join(child.cmdline()):
            found.append(child.pid)
    return found


async def answers(config):
    async with Runtime.open(config) as runtime:
        said = []
        async with runtime.program() as program:
            prompt = list(range(5, 45))
            for _ in range(2):
                prompt += (await program.complete(list(prompt), GREEDY)).tokens
                said.append(tuple(prompt))
        return said, ranks_of(os.getpid())


async def test_two_ranks_answer_as_one_in_eight_bit_pages_too(config) -> None:
    alone = replace(config, kv_dtype="int8")
    wanted, none = await answers(alone)
    got, pids = await answers(replace(alone, tensor_parallel=2))
    assert got == wanted
    assert (len(none), len(pids)) == (0, 1)
    assert not psutil.pid_exists(pids[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensor_parallel": 3}, "4 attention heads do not divide by 3.*one of 1, 2, 4"),
        ({"tensor_parallel": 0}, "cannot be 0 ranks"),
        ({"tensor_parallel": 2, "host_kv_bytes": 1 << 20}, "Leave --host-kv and --kv-files out"),
        ({"tensor_parallel": 2, "model_impl": "transformers"}, "our own decoder computes"),
    ],
)
async def test_what_cannot_be_is_refused_before_any_rank_is_started(config, changes, words) -> None:
    with pytest.raises(ConfigError, match=words):
        async with Runtime.open(replace(config, **changes)):
            pass
    assert ranks_of(os.getpid()) == []


def test_each_rank_has_a_device() -> None:
    assert rank_devices("cpu", 3, 0) == ["cpu"] * 3
    assert rank_devices("cuda", 2, 2) == ["cuda:0", "cuda:1"]
    assert rank_devices("cuda:1", 2, 4) == ["cuda:1", "cuda:2"]
    with pytest.raises(ConfigError, match=r"there are 2\. Use --tensor-parallel 2"):
        rank_devices("cuda", 4, 2)


def serve(config) -> subprocess.Popen:
    """Serve on two ranks; returns once it says its address."""
    command = [sys.executable, "-m", "agentrt.cli.main", "serve", "--port", "0"]
    command += ["--model", config.model, "--device", "cpu", "--tensor-parallel", "2"]
    process = subprocess.Popen(
        [*command, "--pool", "512", "--threads", "1"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    for line in process.stdout:
        if re.search(r"http://127.0.0.1:\d+", line):
            return process
    raise AssertionError("it did not come up")


def test_ctrl_c_ends_all_ranks(config) -> None:
    process = serve(config)
    try:
        [pid] = ranks_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not psutil.pid_exists(pid)
    finally:
        process.kill()
        process.communicate()
