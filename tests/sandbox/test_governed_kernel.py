"""Governed tool calls and the kernel: its events in the record, and calls without network."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from agentrt import intent
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import SandboxSpec, make_provider

pytestmark = [pytest.mark.anyio, pytest.mark.requires_root, pytest.mark.requires_bpf]

CONNECT = "exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}'"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Place:
    """A sandbox of plain processes, its governor, and the records of its calls."""

    def __init__(self, box, governor: Governor, records: list) -> None:
        self.box = box
        self.governor = governor
        self.records = records


async def make_place(**settings) -> AsyncIterator[Place]:
    records: list = []
    governor = Governor(GovernorConfig(on_call=records.append, **settings))
    async with make_provider("process") as provider:
        await provider.govern(governor)
        box = await provider.create(SandboxSpec(network="host"))
        yield Place(box, governor, records)
        governor.close()


@pytest.fixture
async def place(anyio_backend) -> AsyncIterator[Place]:
    async for made in make_place():
        yield made


@pytest.fixture
async def blind(anyio_backend) -> AsyncIterator[Place]:
    async for made in make_place(sensors=False):
        yield made


async def test_a_call_without_network_is_refused_every_connection(place, port) -> None:
    done = await place.box.exec(
        CONNECT.format(port), intent=intent(network="none", memory="64m"), timeout=60
    )
    assert done.exit_code == 1
    assert b"not permitted" in done.stderr
    # Only what the kind itself cannot confine is left to be said.
    assert not [line for line in done.unenforced if "single call" in line]
    assert f"refused tcp 127.0.0.1:{port}" in place.records[0]["connects"]


async def test_the_next_call_has_its_network_again(place, port) -> None:
    for network, code in (("none", 1), (None, 0)):
        declared = intent(memory="64m", network=network) if network else intent(memory="64m")
        done = await place.box.exec(CONNECT.format(port), intent=declared, timeout=60)
        assert done.exit_code == code


async def test_the_record_counts_what_the_kernel_saw(place) -> None:
    await place.box.exec("/bin/true; /bin/true", intent=intent(memory="64m"), timeout=60)
    events = place.records[0]["events"]
    assert events["exec"] >= 2
    assert events["exit"] >= 1
    counted = place.governor.sensor_statistics()
    assert counted.events >= sum(events.values())
    assert counted.lost == 0


async def test_without_sensors_nothing_is_claimed(blind, port) -> None:
    done = await blind.box.exec(
        CONNECT.format(port), intent=intent(network="none", memory="64m"), timeout=60
    )
    assert done.exit_code == 0
    assert [line for line in done.unenforced if "single call" in line]
    assert "events" not in blind.records[0]
    assert blind.governor.sensor_statistics() is None
