"""Sandboxes over HTTP: made, used and removed by their tenant; every call declares its intent.

``POST /v1/sandboxes``, ``GET /v1/sandboxes``, ``POST /v1/sandboxes/{id}/exec``,
``DELETE /v1/sandboxes/{id}``. A sandbox that nobody uses for a while is removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from agentrt.errors import Cancelled, InvalidRequest, QueueFull, ToolNotStarted
from agentrt.resources.hints import parse_hint
from agentrt.resources.intent import Intent, intent_from_json
from agentrt.sandbox.base import ExecResult, Limits, Sandbox, SandboxSpec
from agentrt.serving.errors import FieldError, NotFound
from agentrt.serving.gate import Gate

__all__ = ["MakeSandbox", "Sandboxes", "result_json"]

MakeSandbox = Callable[[SandboxSpec], Awaitable[Sandbox]]

OUTPUT_CAP = 1 << 20
LONGEST_NAME = 256
CREATE_FIELDS = ("program", "image", "env", "intent", "limits", "network")
EXEC_FIELDS = ("command", "cwd", "env", "stdin", "timeout", "intent")


@dataclass(slots=True)
class _Entry:
    sandbox: Sandbox
    tenant: str
    program: str
    used: float
    running: int = 0


class Sandboxes:
    """The sandboxes of one server. Belongs to one event loop."""

    def __init__(
        self,
        make: MakeSandbox,
        gate: Gate,
        clock: Callable[[], float],
        *,
        most: int,
        idle: float,
    ) -> None:
        self._make = make
        self._gate = gate
        self._clock = clock
        self._most = most
        self._idle = idle
        self._open: dict[str, _Entry] = {}
        self._making: dict[str, int] = {}

    async def create(self, tenant: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a sandbox for ``tenant``.

        Raises:
            InvalidRequest: a field is wrong.
            QueueFull: the tenant has as many as it may have.
            BackendUnavailable: the server shuts down, or no sandbox can be made.
        """
        self._gate.check()
        spec = _spec(tenant, body)
        owned = sum(entry.tenant == tenant for entry in self._open.values())
        if owned + self._making.get(tenant, 0) >= self._most:
            raise QueueFull(f"You have {owned} sandboxes, as many as may be.", remedy="Delete one.")
        self._making[tenant] = self._making.get(tenant, 0) + 1
        try:
            sandbox = await self._make(spec)
        finally:
            self._making[tenant] -= 1
        name = f"sb-{secrets.token_hex(8)}"
        entry = _Entry(sandbox, tenant, spec.program or name, self._clock())
        self._open[name] = entry
        return _describe(name, entry)

    def listing(self, tenant: str) -> dict[str, Any]:
        """The tenant's sandboxes."""
        found = [_describe(n, e) for n, e in self._open.items() if e.tenant == tenant]
        return {"object": "list", "data": found}

    async def execute(
        self,
        tenant: str,
        name: str,
        body: Mapping[str, Any],
        left: Callable[[], Awaitable[None]],
    ) -> dict[str, Any]:
        """Run one tool call; it is killed when the client leaves (``left`` returns then).

        Raises:
            InvalidRequest: a field is wrong, or the command cannot start.
            NotFound: the tenant has no such sandbox.
            Cancelled: the client left, or the server ended.
        """
        self._gate.check()
        entry = self._entry(tenant, name)
        call = _call(body)
        entry.running += 1
        done: ExecResult | None = None
        try:
            async with anyio.create_task_group() as tasks:
                with self._gate.guard(tasks.cancel_scope.cancel):
                    tasks.start_soon(_cancel_when, left, tasks.cancel_scope)
                    done = await _executed(entry.sandbox, call)
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:
                raise errors.exceptions[0] from None
            raise
        finally:
            entry.running -= 1
            entry.used = self._clock()
        if done is None:
            raise Cancelled("The tool call was cancelled.", remedy="Send the request again.")
        return {"object": "sandbox.result", "sandbox": name, **result_json(done)}

    async def delete(self, tenant: str, name: str) -> dict[str, Any]:
        """Remove a sandbox, with what runs in it.

        Raises:
            NotFound: the tenant has no such sandbox.
        """
        entry = self._entry(tenant, name)
        del self._open[name]
        await entry.sandbox.close()
        return {"id": name, "object": "sandbox", "deleted": True}

    async def sweep(self) -> int:
        """Remove the sandboxes that were idle for too long; return how many."""
        now = self._clock()
        old = [
            name
            for name, entry in self._open.items()
            if not entry.running and now - entry.used >= self._idle
        ]
        for name in old:
            await self._open.pop(name).sandbox.close()
        return len(old)

    async def aclose(self) -> None:
        """Remove all of them."""
        while self._open:
            _, entry = self._open.popitem()
            await entry.sandbox.close()

    def _entry(self, tenant: str, name: str) -> _Entry:
        entry = self._open.get(name)
        # Another tenant's sandbox is as unknown as one that never was.
        if entry is None or entry.tenant != tenant:
            raise NotFound(
                f"There is no sandbox {name!r}.", remedy="Make one with POST /v1/sandboxes."
            )
        return entry


async def _cancel_when(left: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await left()
    scope.cancel()


async def _executed(sandbox: Sandbox, call: Mapping[str, Any]) -> ExecResult:
    try:
        return await sandbox.exec(**call, output_cap=OUTPUT_CAP)
    except ToolNotStarted as error:
        raise InvalidRequest(error.message, remedy=error.remedy) from error


def result_json(result: ExecResult) -> dict[str, Any]:
    """A tool call's result as JSON; what is no text in its output is replaced."""
    fields = asdict(result)
    for name in ("stdout", "stderr"):
        fields[name] = fields[name].decode(errors="replace")
    return fields


def _describe(name: str, entry: _Entry) -> dict[str, Any]:
    return {
        "id": name,
        "object": "sandbox",
        "kind": entry.sandbox.kind,
        "workdir": entry.sandbox.workdir,
        "program": entry.program,
    }


# --- reading requests -------------------------------------------------------------------------


def _spec(tenant: str, body: Mapping[str, Any]) -> SandboxSpec:
    _only(body, CREATE_FIELDS)
    network = body.get("network", "none")
    if network != "none":
        raise FieldError("network", "can only be none", remedy="Sandboxes here have no network.")
    return SandboxSpec(
        image=_text(body, "image"),
        env=_env(body),
        limits=_limits(body.get("limits")),
        tenant=tenant,
        program=_text(body, "program"),
        intent=_intent(body),
    )


def _call(body: Mapping[str, Any]) -> dict[str, Any]:
    _only(body, EXEC_FIELDS)
    command = body.get("command")
    listed = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not command or not (isinstance(command, str) or listed):
        raise FieldError("command", "is no text or list of texts", remedy='Send {"command": "ls"}.')
    stdin = _text(body, "stdin", longest=None)
    return {
        "command": command,
        "cwd": _text(body, "cwd"),
        "env": _env(body),
        "stdin": None if stdin is None else stdin.encode(errors="surrogatepass"),
        "timeout": _number(body, "timeout"),
        "intent": _intent(body),
    }


def _only(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise FieldError(unknown[0], "is not known", remedy=f"Use: {', '.join(known)}.")


def _intent(body: Mapping[str, Any]) -> Intent | None:
    value = body.get("intent")
    if value is None:
        return None
    if not isinstance(value, str):
        return intent_from_json(value)
    found, problems = parse_hint(value)
    if problems:
        raise FieldError("intent", f"holds {problems[0]!r}", remedy="Write memory:1g,cpu:2.")
    return found


def _limits(value: Any) -> Limits:
    if value is None:
        return Limits()
    if not isinstance(value, Mapping) or set(value) - {"memory", "cpu", "pids"}:
        raise FieldError(
            "limits", "is wrong", remedy='Send {"memory": "1g", "cpu": 2, "pids": 64}.'
        )
    found = intent_from_json(value)
    if isinstance(found.memory, str):
        raise FieldError("limits", "needs a memory size", remedy="Write it as 512m.")
    return Limits(found.memory, found.cpu, found.pids)


def _env(body: Mapping[str, Any]) -> dict[str, str]:
    value = body.get("env", {})
    if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
        raise FieldError("env", "is no object of texts", remedy='Send {"env": {"A": "1"}}.')
    return dict(value)


def _text(body: Mapping[str, Any], name: str, longest: int | None = 4096) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    too_long = longest is not None and isinstance(value, str) and len(value) > longest
    if not isinstance(value, str) or too_long:
        raise FieldError(name, "is no short text", remedy="Send a text.")
    return value


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise FieldError(name, "is no positive number", remedy="Send seconds.")
    return float(value)
