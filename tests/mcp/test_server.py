"""The MCP server: its protocol, its one tool, and bad messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from agentrt.mcp import EXEC_TOOL, McpServer, run_exec
from agentrt.resources.intent import Intent
from agentrt.sandbox.base import ExecResult, ResourceUsage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeBox:
    """Answers at once, or never; remembers what it was asked."""

    def __init__(self, **result: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = False
        self.result = {
            "status": "exited",
            "exit_code": 0,
            "stdout": b"out\n",
            "stderr": b"",
            "stdout_truncated": False,
            "stderr_truncated": False,
            "duration": 0.1,
            "resources": ResourceUsage(),
            **result,
        }

    async def exec(self, command: str, **options: Any) -> ExecResult:
        self.asked.append((command, options))
        if command == "sleep":
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled = True
        return ExecResult(**self.result)


class Client:
    """Sends lines, collects answers by id."""

    def __init__(self, box: FakeBox) -> None:
        self.answers: list[dict[str, Any]] = []
        self.lines: list[str] = []

        async def run(arguments: Any) -> Any:
            return await run_exec(box, arguments)  # type: ignore[arg-type]

        async def write(text: str) -> None:
            assert text.endswith("\n")
            self.answers.append(json.loads(text))

        self.server = McpServer({"exec": (EXEC_TOOL, run)}, write, "1.2.3")

    def send(self, method: str, number: Any = None, **params: Any) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if number is not None:
            message["id"] = number
        self.lines.append(json.dumps(message))

    async def finish(self) -> dict[Any, dict[str, Any]]:
        async def all_lines() -> AsyncIterator[str]:
            for line in self.lines:
                yield line
                await anyio.wait_all_tasks_blocked()

        with anyio.fail_after(20):
            await self.server.serve(all_lines())
        return {answer["id"]: answer for answer in self.answers}


async def test_a_session() -> None:
    box = FakeBox()
    client = Client(box)
    client.send("initialize", 1, protocolVersion="2024-11-05", capabilities={})
    client.send("notifications/initialized")
    client.send("tools/list", 2)
    client.send("ping", "p")
    client.send(
        "tools/call",
        3,
        name="exec",
        arguments={"command": "make", "timeout": 5, "intent": {"memory": "1g", "cpu": 2}},
    )
    got = await client.finish()
    assert got[1]["result"]["protocolVersion"] == "2024-11-05"
    assert got[1]["result"]["serverInfo"] == {"name": "agentrt", "version": "1.2.3"}
    (tool,) = got[2]["result"]["tools"]
    assert tool["inputSchema"]["required"] == ["command"]
    assert got["p"]["result"] == {}
    assert got[3]["result"]["content"] == [{"type": "text", "text": "out"}]
    assert got[3]["result"]["isError"] is False
    command, options = box.asked[0]
    assert (command, options["timeout"]) == ("make", 5.0)
    assert options["intent"] == Intent(memory=1 << 30, cpu=2)


async def test_an_unknown_version_gets_ours() -> None:
    client = Client(FakeBox())
    client.send("initialize", 1, protocolVersion="1999-01-01")
    assert (await client.finish())[1]["result"]["protocolVersion"] == "2025-06-18"


async def test_a_failure_is_told_to_the_model() -> None:
    box = FakeBox(exit_code=1, stderr=b"bad\n", unenforced=("memory: why",))
    client = Client(box)
    arguments = {"command": "x", "intent": {"memory": "?"}}
    client.send("tools/call", 1, name="exec", arguments=arguments)
    result = (await client.finish())[1]["result"]
    text = result["content"][0]["text"]
    assert result["isError"] is True
    assert text.startswith("out\n[stderr]\nbad\n[exited, exit code 1]\n[not understood in")
    assert "[not enforced: memory: why]" in text
    assert result["structuredContent"]["exit_code"] == 1


async def test_a_cancelled_call_is_killed_and_not_answered() -> None:
    box = FakeBox()
    client = Client(box)
    client.send("tools/call", 1, name="exec", arguments={"command": "sleep"})
    client.send("notifications/cancelled", requestId=1)
    client.send("ping", 2)
    assert set(await client.finish()) == {2}
    assert box.cancelled


async def test_the_end_of_input_ends_what_runs() -> None:
    box = FakeBox()
    client = Client(box)
    client.send("tools/call", 1, name="exec", arguments={"command": "sleep"})
    assert await client.finish() == {}
    assert box.cancelled


@pytest.mark.parametrize(
    ("line", "number", "code"),
    [
        ("{", None, -32700),
        ("[" * 5000, None, -32700),
        ("[]", None, -32600),
        ('{"id": 1, "method": "ping"}', None, -32600),
        ('{"jsonrpc": "2.0", "id": 1, "method": "fly"}', 1, -32601),
        ('{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}', 1, -32602),
        ('{"jsonrpc": "2.0", "id": true, "method": "ping"}', None, -32600),
        (
            '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "rm"}}',
            1,
            -32602,
        ),
        (
            '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "exec"}}',
            1,
            -32602,
        ),
    ],
)
async def test_bad_messages_get_errors(line: str, number: Any, code: int) -> None:
    client = Client(FakeBox())
    client.lines.append(line)
    got = await client.finish()
    assert got[number]["error"]["code"] == code


async def test_answers_that_we_never_asked_for_are_passed_over() -> None:
    client = Client(FakeBox())
    client.lines.append('{"jsonrpc": "2.0", "id": 1, "result": {}}')
    client.lines.append("")
    assert await client.finish() == {}
