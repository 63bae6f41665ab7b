"""Gates of guide runs, answered over HTTP while nobody drives the run."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from agentrt.serving.app import create_app
from agentrt.serving.settings import ServeSettings
from agentrt.workflows.log import RunLog
from agentrt.workflows.session import open_log
from tests.serving.fakes import FakeRuntime

pytestmark = pytest.mark.anyio

GATE = {
    "gate": "Step4/approve",
    "question": "Fail over?",
    "options": ["approve", "deny"],
    "default": "deny",
    "expires": None,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with open_log(tmp_path) as log:
        begin(log, "run-1")
        begin(log, "run-2")
        log.append("run-2", "run_ended", None, {"status": "cancelled", "reason": "enough"})
    return tmp_path


def begin(log: RunLog, name: str) -> None:
    log.create(name, guide="database_failover", fingerprint="f")
    log.append(name, "gate_opened", "Step4", GATE)


def client(directory: Path | None, **settings: object) -> httpx.AsyncClient:
    app = create_app(FakeRuntime(), ServeSettings(guides=directory, **settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_runs_are_listed_with_what_they_wait_for(runs) -> None:
    async with client(runs) as http:
        rows = (await http.get("/v1/guides/runs")).json()["data"]
    assert [(row["run"], row["status"], row["asks"]) for row in rows] == [
        ("run-1", "unfinished", ["Step4/approve"]),
        ("run-2", "cancelled", []),
    ]
    assert rows[0]["gates"][0]["options"] == ["approve", "deny"]


async def test_an_answer_is_recorded_once(runs) -> None:
    body = {"gate": "Step4/approve", "answer": "approve"}
    async with client(runs) as http:
        answer = await http.post("/v1/guides/runs/run-1/answers", json=body)
        again = await http.post("/v1/guides/runs/run-1/answers", json=body)
    assert (answer.status_code, answer.json()["driven"]) == (200, False)
    assert again.status_code == 400
    assert "does not wait" in again.json()["error"]["message"]
    with open_log(runs) as log:
        (event,) = [event for event in log.events("run-1") if event.kind == "gate_answered"]
    assert (event.step, event.data["answer"], event.data["by"]) == ("Step4", "approve", "person")


@pytest.mark.parametrize(
    ("run", "body"),
    [
        ("run-1", {"gate": "Step4/approve", "answer": "perhaps"}),
        ("run-1", {"gate": "Step9/approve", "answer": "approve"}),
        ("run-1", {"answer": "approve"}),
        ("run-2", {"gate": "Step4/approve", "answer": "approve"}),
        ("run-9", {"gate": "Step4/approve", "answer": "approve"}),
    ],
)
async def test_wrong_answers_are_refused(runs, run, body) -> None:
    async with client(runs) as http:
        refused = await http.post(f"/v1/guides/runs/{run}/answers", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


async def test_a_key_is_asked_for_where_there_are_keys(runs) -> None:
    async with client(runs, api_keys={"secret": "a"}) as http:
        assert (await http.get("/v1/guides/runs")).status_code == 401
        known = {"authorization": "Bearer secret"}
        assert (await http.get("/v1/guides/runs", headers=known)).status_code == 200


async def test_there_are_no_such_routes_without_a_directory() -> None:
    async with client(None) as http:
        assert (await http.get("/v1/guides/runs")).status_code == 404
