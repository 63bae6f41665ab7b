"""``/v1/sandboxes``: tenants, refusals, intents, and what is left when a client goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentrt.resources.envelope import Budget
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.sandbox import make_provider
from agentrt.sandbox.base import Sandbox, SandboxSpec
from agentrt.serving.settings import ServeSettings
from tests.serving.conftest import LiveServer
from tests.serving.fakes import FakeRuntime

pytestmark = pytest.mark.requires_root

KEYS = {"key-a": "alice", "key-b": "bob"}
ALICE, BOB = ({"authorization": f"Bearer {key}"} for key in KEYS)
BUDGETS = {"alice": Budget("alice", memory=256 << 20)}


class ToolRuntime(FakeRuntime):
    """A runtime whose sandboxes are plain processes, governed."""

    provider: Any = None

    async def sandbox(self, spec: SandboxSpec) -> Sandbox:
        made: Sandbox = await self.provider.create(spec)
        return made


@asynccontextmanager
async def tool_runtime():
    governor = Governor(GovernorConfig(tenants=BUDGETS))
    async with ToolRuntime() as runtime, make_provider("process") as provider:
        await provider.govern(governor)
        runtime.provider = provider
        yield runtime
        governor.close()


@pytest.fixture
def live() -> Iterator[LiveServer]:
    settings = ServeSettings(drain=0.0, api_keys=KEYS, sandboxes=True, max_sandboxes=2)
    server = LiveServer(tool_runtime, settings)
    server.start()
    yield server
    server.stop()


def make(live: LiveServer, who: dict[str, str] = ALICE, **body: Any) -> str:
    answer = live.http.post(f"{live.url}/sandboxes", json=body, headers=who)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def run(live: LiveServer, name: str, who: dict[str, str] = ALICE, **body: Any) -> Any:
    return live.http.post(f"{live.url}/sandboxes/{name}/exec", json=body, headers=who)


def test_a_sandbox_from_its_making_to_its_end(live: LiveServer) -> None:
    name = make(live, program="agent-1")
    done = run(live, name, command="echo hi > f; cat f", intent={"memory": "64m"}).json()
    assert (done["status"], done["exit_code"], done["stdout"]) == ("exited", 0, "hi\n")
    assert done["feedback"]["outcome"] == "fine"
    assert run(live, name, command=["cat", "f"]).json()["stdout"] == "hi\n"
    listed = live.http.get(f"{live.url}/sandboxes", headers=ALICE).json()["data"]
    assert [(each["id"], each["program"]) for each in listed] == [(name, "agent-1")]
    gone = live.http.delete(f"{live.url}/sandboxes/{name}", headers=ALICE)
    assert gone.json() == {"id": name, "object": "sandbox", "deleted": True}
    assert run(live, name, command="ls").status_code == 404


def test_intents_are_clamped_to_the_tenant_and_told(live: LiveServer) -> None:
    name = make(live)
    done = run(live, name, command="true", intent="memory:1g,cpu:1").json()
    assert done["resources"]["memory_limit"] == 256 << 20
    assert "memory 1g was cut to 256m, the budget of the tenant" in done["feedback"]["text"]
    other = make(live, BOB)
    done = run(live, other, BOB, command="true", intent="memory:1g").json()
    assert done["feedback"]["clamps"] == []


def test_an_out_of_memory_is_named(live: LiveServer) -> None:
    name = make(live)
    use = "python3 -c 'x = bytearray(200 << 20)'"
    done = run(live, name, command=use, intent={"memory": "64m", "on_limit": "kill"}).json()
    assert done["status"] == "out_of_memory"
    assert done["feedback"]["suggested"] == {"memory": "128m"}


def test_tenants_do_not_meet(live: LiveServer) -> None:
    name = make(live)
    assert run(live, name, BOB, command="ls").status_code == 404
    assert live.http.delete(f"{live.url}/sandboxes/{name}", headers=BOB).status_code == 404
    assert live.http.get(f"{live.url}/sandboxes", headers=BOB).json()["data"] == []
    assert live.http.get(f"{live.url}/sandboxes").status_code == 401
    assert live.http.post(f"{live.url}/sandboxes", json={}).status_code == 401


def test_a_tenant_has_so_many_and_no_more(live: LiveServer) -> None:
    make(live)
    make(live)
    answer = live.http.post(f"{live.url}/sandboxes", json={}, headers=ALICE)
    assert answer.status_code == 429
    make(live, BOB)


@pytest.mark.parametrize(
    "body",
    [
        {"source": "/etc"},
        {"network": "host"},
        {"env": [1]},
        {"intent": {"memory": "lots"}},
        {"intent": "memory:lots"},
        {"limits": {"ram": 1}},
        {"limits": {"memory": "low"}},
        {"program": 5},
    ],
)
def test_what_cannot_be_made_is_refused(live: LiveServer, body: dict[str, Any]) -> None:
    answer = live.http.post(f"{live.url}/sandboxes", json=body, headers=ALICE)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": 5},
        {"command": "ls", "timeout": -1},
        {"command": "ls", "intent": {"disk": 1}},
        {"command": "ls", "colour": 1},
        {"command": "/no/such/program"},
        {"command": ["/no/such/program"]},
    ],
)
def test_what_cannot_run_is_refused(live: LiveServer, body: dict[str, Any]) -> None:
    answer = run(live, make(live), **body)
    started = body.get("command") == "/no/such/program"
    assert answer.status_code == (200 if started else 400), answer.text


def test_the_end_of_the_server_ends_what_runs(live: LiveServer) -> None:
    name = make(live)
    (box,) = live.runtime.provider._made
    run(live, name, command="sleep 600 & echo started")
    assert box.sandbox_id
    live.stop()
    assert not box._active


def test_without_the_setting_there_are_no_such_routes(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    assert live.http.post(f"{live.url}/sandboxes", json={}).status_code == 404
