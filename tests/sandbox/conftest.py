"""Fixtures of the sandbox tests: a sandbox of each kind, isolated state, tracers for leaks."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from agentrt.sandbox import SandboxProvider, make_provider

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = "agentrt-test:1"
COMBINATIONS = [
    pytest.param(("process", "asyncio"), id="process-asyncio"),
    pytest.param(("process", "trio"), id="process-trio"),
    pytest.param(
        ("bubblewrap", "asyncio"), id="bubblewrap-asyncio", marks=pytest.mark.requires_bwrap
    ),
    pytest.param(("bubblewrap", "trio"), id="bubblewrap-trio", marks=pytest.mark.requires_bwrap),
    pytest.param(("docker", "asyncio"), id="docker-asyncio", marks=pytest.mark.requires_docker),
]
CONFINING = COMBINATIONS[2:]
ONE_LOOP = COMBINATIONS[::2]
"""Each kind once."""


@pytest.fixture(params=COMBINATIONS)
def combination(request) -> tuple[str, str]:
    """A kind of sandbox and an event loop to try it on."""
    return request.param


@pytest.fixture
def kind(combination) -> str:
    """The kind under test; asking for it runs the test for each kind and event loop."""
    return combination[0]


@pytest.fixture
def anyio_backend(request) -> str:
    """The event loop of the combination; asyncio for tests of no kind in particular."""
    if "combination" in request.fixturenames:
        return request.getfixturevalue("combination")[1]
    return "asyncio"


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """A state directory and a temporary directory of the test's own."""
    place = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("AGENTRT_STATE", str(place / "records"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert sorted(path.name for path in place.iterdir()) == []


@pytest.fixture(scope="session")
def test_image() -> str:
    """The image of the docker tests, made once out of this machine's programs."""
    from agentrt.sandbox.docker_api import connect

    api = connect()
    known = api.images(name=IMAGE)
    api.close()
    if not known:
        script = str(REPOSITORY / "scripts" / "make-test-image")
        subprocess.run([sys.executable, script, IMAGE], check=True, timeout=100)
    return IMAGE


@pytest.fixture
async def provider(kind, request, anyio_backend) -> AsyncIterator[SandboxProvider]:
    """A provider of the kind under test, closed afterwards."""
    image = request.getfixturevalue("test_image") if kind == "docker" else None
    async with make_provider(kind, image=image) as made:
        yield made


class Tracer:
    """A number that shows in the command line of a process: ``sleep <number>``."""

    def __init__(self) -> None:
        self.number = f"9{random.SystemRandom().randrange(10**7, 10**8)}"

    def alive(self) -> list[int]:
        """Processes that carry the number as an argument."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self.number.encode() in words and state not in "ZX":
                found.append(int(path.parent.name))
        return found

    async def appears(self) -> None:
        """Wait, within bounds, until such a process runs."""
        for _ in range(2000):
            if self.alive():
                return
            await anyio.sleep(0.01)
        raise TimeoutError("the process never ran")


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


def cgroups_of(run_id: str) -> list[Path]:
    """Cgroup directories of a run, in any hierarchy."""
    return [
        path
        for pattern in (f"agentrt/{run_id}", f"*/agentrt/{run_id}")
        for path in Path("/sys/fs/cgroup").glob(pattern)
    ]
