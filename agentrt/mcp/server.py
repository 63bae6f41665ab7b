"""JSON-RPC 2.0 in lines, as MCP's stdio transport has it: requests in, answers and errors out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import anyio

from agentrt.errors import AgentRTError, InvalidRequest

__all__ = ["McpServer"]

VERSIONS = ("2025-06-18", "2025-03-26", "2024-11-05")
PARSE_ERROR, INVALID, UNKNOWN_METHOD, BAD_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603

Tool: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
Id: TypeAlias = str | int


class McpServer:
    """Serves tools to one client. ``tools`` maps a name to its description and its function."""

    def __init__(
        self,
        tools: Mapping[str, tuple[dict[str, Any], Tool]],
        write: Callable[[str], Awaitable[None]],
        version: str,
    ) -> None:
        self._tools = tools
        self._write = write
        self._version = version
        self._running: dict[Id, anyio.CancelScope] = {}
        self._writing = anyio.Lock()

    async def serve(self, lines: AsyncIterable[str]) -> None:
        """Answer until the client closes its end; calls that still run are then killed."""
        async with anyio.create_task_group() as tasks:
            async for line in lines:
                if line.strip():
                    await self._take(line, tasks)
            tasks.cancel_scope.cancel()

    async def _take(self, line: str, tasks: anyio.abc.TaskGroup) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return await self._fail(None, PARSE_ERROR, "this is no JSON")
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return await self._fail(None, INVALID, "this is no JSON-RPC 2.0 message")
        method, number = message.get("method"), message.get("id")
        params = message.get("params") or {}
        if not isinstance(method, str):
            return None  # an answer to something that we never ask
        if not isinstance(params, dict):
            return await self._fail(number, BAD_PARAMS, "params is no object")
        if "id" not in message:
            return self._notified(method, params)
        if isinstance(number, bool) or not isinstance(number, (str, int)):
            return await self._fail(None, INVALID, "an id is a text or a whole number")
        if method == "tools/call":
            tasks.start_soon(self._call, number, params)
            return None
        return await self._answer(number, method, params)

    def _notified(self, method: str, params: Mapping[str, Any]) -> None:
        number = params.get("requestId")
        if method == "notifications/cancelled" and isinstance(number, (str, int)):
            scope = self._running.get(number)
            if scope is not None:
                scope.cancel()

    async def _answer(self, number: Id, method: str, params: Mapping[str, Any]) -> None:
        if method == "initialize":
            return await self._reply(number, self._introduce(params))
        if method == "ping":
            return await self._reply(number, {})
        if method == "tools/list":
            return await self._reply(number, {"tools": [told for told, _ in self._tools.values()]})
        return await self._fail(number, UNKNOWN_METHOD, f"there is no method {method}")

    def _introduce(self, params: Mapping[str, Any]) -> dict[str, Any]:
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "agentrt", "version": self._version},
        }

    async def _call(self, number: Id, params: Mapping[str, Any]) -> None:
        found = self._tools.get(str(params.get("name")))
        arguments = params.get("arguments") or {}
        if found is None or not isinstance(arguments, dict):
            return await self._fail(number, BAD_PARAMS, f"there is no tool {params.get('name')!r}")
        if number in self._running:
            return await self._fail(number, INVALID, "a call with this id runs already")
        with anyio.CancelScope() as scope:
            self._running[number] = scope
            try:
                result = await found[1](arguments)
            except InvalidRequest as error:
                return await self._fail(number, BAD_PARAMS, str(error))
            except AgentRTError as error:
                return await self._fail(number, INTERNAL, str(error))
            finally:
                del self._running[number]
            return await self._reply(number, result)
        return None  # cancelled: the client expects no answer

    async def _reply(self, number: Id, result: Mapping[str, Any]) -> None:
        await self._send({"jsonrpc": "2.0", "id": number, "result": result})

    async def _fail(self, number: Id | None, code: int, why: str) -> None:
        error = {"code": code, "message": why}
        await self._send({"jsonrpc": "2.0", "id": number, "error": error})

    async def _send(self, message: Mapping[str, Any]) -> None:
        # One line each: JSON's own escapes keep line ends out of it.
        async with self._writing:
            await self._write(json.dumps(message) + "\n")
