"""The HTTP application: routes, from a request to a job and from errors to answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from agentrt.errors import (
    AgentRTError,
    Cancelled,
    InternalError,
    InvalidRequest,
    QuotaExceeded,
)
from agentrt.identity import Identity, identify
from agentrt.serving import openai
from agentrt.serving.auth import Tenants
from agentrt.serving.errors import BodyTooLarge, NotFound, refusal
from agentrt.serving.gate import Gate
from agentrt.serving.guides import GuideRuns
from agentrt.serving.metrics import CONTENT_TYPE
from agentrt.serving.places import Asked, Places
from agentrt.serving.requests import (
    ChatRequest,
    CompletionRequest,
    parse_body,
    parse_chat,
    parse_completion,
)
from agentrt.serving.sandboxes import Sandboxes
from agentrt.serving.settings import ServeSettings
from agentrt.serving.turns import TurnResponse, encode_json

if TYPE_CHECKING:
    from agentrt.engine.tokens import PromptBuilder
    from agentrt.runtime import Runtime
    from agentrt.served import ServedModel

__all__ = ["create_app", "gate_of"]


def create_app(
    runtime: Runtime,
    settings: ServeSettings | None = None,
    *,
    make_builder: Callable[[], PromptBuilder] | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Return an application that serves ``runtime``, which stays the caller's to close.

    Run its lifespan: it ends idle programs, and all of them at the end. ``make_builder`` makes the
    prompt builder of a context; by default one for its model's tokenizer. ``wall_clock`` gives
    the Unix time that answers are stamped with.
    """
    server = _Server(runtime, settings or ServeSettings(), make_builder, wall_clock)
    app = FastAPI(
        title="agentrt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=server.lifespan
    )
    app.state.gate = server.gate
    app.add_api_route("/v1/models", server.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"])
    app.add_api_route("/v1/completions", server.completion, methods=["POST"])
    app.add_api_route("/v1/programs/{name:path}", server.end_program, methods=["DELETE"])
    if server.guides is not None:
        app.add_api_route("/v1/guides/runs", server.guide_runs, methods=["GET"])
        app.add_api_route("/v1/guides/runs/{name}/answers", server.guide_answer, methods=["POST"])
    if server.sandboxes is not None:
        place = "/v1/sandboxes"
        app.add_api_route(place, server.make_sandbox, methods=["POST"])
        app.add_api_route(place, server.list_sandboxes, methods=["GET"])
        app.add_api_route(place + "/{name}/exec", server.execute, methods=["POST"])
        app.add_api_route(place + "/{name}", server.delete_sandbox, methods=["DELETE"])
    for path in ("/health", "/healthz"):
        app.add_api_route(path, server.health, methods=["GET"])
    for path in ("/ready", "/readyz"):
        app.add_api_route(path, server.ready, methods=["GET"])
    app.add_api_route("/metrics", server.metrics, methods=["GET"])
    app.add_exception_handler(AgentRTError, server.on_error)
    app.add_exception_handler(HTTPException, server.on_http_error)
    app.add_exception_handler(Exception, server.on_bug)
    return app


def gate_of(app: FastAPI) -> Gate:
    """Return the gate of an application that ``create_app`` made: its way in, to be closed."""
    gate = app.state.gate
    if not isinstance(gate, Gate):
        raise InternalError("The application was not made by create_app.")
    return gate


def _default_builder(model: ServedModel) -> Callable[[], PromptBuilder]:
    from agentrt.engine.tokens import PromptBuilder

    return partial(PromptBuilder, model.tokenizer)


class _Server:
    """The handlers, and what they share."""

    def __init__(
        self,
        runtime: Runtime,
        settings: ServeSettings,
        make_builder: Callable[[], PromptBuilder] | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._wall_clock = wall_clock
        self._created = int(wall_clock())
        self._tenants = Tenants(settings.api_keys)
        self.gate = Gate()
        self._places = Places(
            runtime.models,
            settings,
            self.gate,
            make_builder=_default_builder if make_builder is None else lambda model: make_builder,
            clock=runtime.clock,
        )
        self._metrics = self._places.metrics
        self.sandboxes = self._sandbox_desk() if settings.sandboxes else None
        self.guides = GuideRuns(settings.guides) if settings.guides is not None else None

    def lifespan(self, app: FastAPI) -> AbstractAsyncContextManager[None]:
        """Sweep idle programs while the application is up, and end all programs after it."""
        del app
        return self._sweeping()

    @asynccontextmanager
    async def _sweeping(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sweep)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    if self.sandboxes is not None:
                        await self.sandboxes.aclose()
                    for place in self._places:
                        await place.desk.registry.aclose()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(self._settings.sweep)
            for place in self._places:
                await place.desk.registry.sweep()
            if self.sandboxes is not None:
                await self.sandboxes.sweep()

    # --- turns ----------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        tenant = self._tenants.tenant(request.headers)
        body = await self._body(request)
        asked = parse_chat(body)
        meant = self._meant(tenant, asked.model)
        who = self._identify(request, body, asked)
        head = self._head("chatcmpl", meant)
        job = meant.place.jobs.chat(tenant, who, asked, head, meant.adapter)
        return TurnResponse(meant.place.desk, job)

    def _meant(self, tenant: str, model: str | None) -> Asked:
        """Return the model and adapter that a request for a turn means.

        Raises:
            NotFound: there is no such model.
            QuotaExceeded: the tenant's quota is used up, and a turn may not wait for more of it.
        """
        meant = self._places.find(model)
        seconds = meant.place.model.tenants.refusal(tenant, self._runtime.clock())
        if seconds is not None:
            raise QuotaExceeded(
                f"The quota of {tenant} is used up, and no more of its turns may wait.",
                remedy="Try again after the time in Retry-After, or ask for a larger quota.",
                retry_after=seconds,
            )
        return meant

    async def completion(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        tenant = self._tenants.tenant(request.headers)
        body = await self._body(request)
        asked = parse_completion(body)
        meant = self._meant(tenant, asked.model)
        who = self._identify(request, body, asked)
        head = self._head("cmpl", meant)
        job = meant.place.jobs.completion(tenant, who, asked, head, meant.adapter)
        return TurnResponse(meant.place.desk, job)

    async def end_program(self, request: Request, name: str) -> Response:
        """``DELETE /v1/programs/{name}``: end it now, with its running turns, at every model."""
        tenant = self._tenants.tenant(request.headers)
        ended = [await place.desk.registry.end(tenant, name) for place in self._places]
        if not any(ended):
            raise NotFound(
                f"No program {name!r} is open.",
                remedy="Use the name of the x-agentrt-program header of an answer.",
            )
        return _json(200, {"id": name, "object": "program", "deleted": True})

    def _identify(
        self, request: Request, body: dict[str, Any], asked: ChatRequest | CompletionRequest
    ) -> Identity:
        """Return who is calling, having counted what deserves it."""
        who = identify(body, request.headers, self._runtime.clock())
        self._metrics.unknown_fields(asked.unknown)
        self._metrics.hints(who.notes)
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            self._metrics.retried()
        return who

    def _head(self, kind: str, meant: Asked) -> openai.ReplyHead:
        return openai.ReplyHead(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(self._wall_clock()),
            model=meant.name,
        )

    async def _body(self, request: Request) -> dict[str, Any]:
        limit = self._settings.max_body_bytes
        parts = bytearray()
        try:
            async for part in request.stream():
                parts += part
                if len(parts) > limit:
                    raise BodyTooLarge(
                        f"The request body is larger than {limit} bytes.",
                        remedy="Send less text.",
                    )
        except ClientDisconnect as error:
            raise Cancelled("The client left.", remedy="Send the request again.") from error
        return parse_body(bytes(parts))

    # --- about the server -----------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        self._tenants.tenant(request.headers)
        return _json(200, openai.models(self._places.names, self._created))

    async def model(self, request: Request, name: str) -> Response:
        """``GET /v1/models/{name}``."""
        self._tenants.tenant(request.headers)
        self._places.find(name)
        return _json(200, openai.model(name, self._created))

    async def health(self) -> Response:
        """``GET /health``, ``/healthz``: 200 while the engines run, else 503."""
        return self._told()

    async def ready(self) -> Response:
        """``GET /ready``, ``/readyz``: 200 while new turns are taken, else 503."""
        return self._told("draining" if self.gate.draining else None)

    def _told(self, state: str | None = None) -> Response:
        """Say ``state``, or that of the engine that is worst off, and what its last fault was.

        A model that is not in device memory is well: a turn brings it back.
        """
        figures = [place.model.statistics() for place in self._places]
        well = ("running", "unloaded")
        worst = next((one for one in figures if one.state not in well), figures[0])
        told = state or ("running" if worst.state in well else worst.state)
        body: dict[str, Any] = {"status": told}
        for one in figures:
            if one.fault is not None:
                body |= {"restarts": one.restarts, "last_fault": one.fault}
        return _json(200 if told == "running" else 503, body)

    async def metrics(self) -> Response:
        """``GET /metrics``."""
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})

    # --- guides ---------------------------------------------------------------------------------

    async def guide_runs(self, request: Request) -> Response:
        """``GET /v1/guides/runs``."""
        self._tenants.tenant(request.headers)
        return _json(200, await self._guide_desk().listing())

    async def guide_answer(self, request: Request, name: str) -> Response:
        """``POST /v1/guides/runs/{run}/answers``."""
        self._tenants.tenant(request.headers)
        return _json(200, await self._guide_desk().answer(name, await self._body(request)))

    def _guide_desk(self) -> GuideRuns:
        if self.guides is None:
            raise InternalError("A route of guide runs was added without a directory.")
        return self.guides

    # --- sandboxes ------------------------------------------------------------------------------

    def _sandbox_desk(self) -> Sandboxes:
        return Sandboxes(
            self._runtime.sandbox,
            self.gate,
            self._runtime.clock,
            most=self._settings.max_sandboxes,
            idle=self._settings.sandbox_idle,
        )

    def _sandboxes(self) -> Sandboxes:
        if self.sandboxes is None:
            raise InternalError("A route of sandboxes was added without any.")
        return self.sandboxes

    async def make_sandbox(self, request: Request) -> Response:
        """``POST /v1/sandboxes``."""
        tenant = self._tenants.tenant(request.headers)
        return _json(201, await self._sandboxes().create(tenant, await self._body(request)))

    async def list_sandboxes(self, request: Request) -> Response:
        """``GET /v1/sandboxes``."""
        return _json(200, self._sandboxes().listing(self._tenants.tenant(request.headers)))

    async def execute(self, request: Request, name: str) -> Response:
        """``POST /v1/sandboxes/{name}/exec``."""
        tenant = self._tenants.tenant(request.headers)
        body = await self._body(request)

        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        return _json(200, await self._sandboxes().execute(tenant, name, body, left))

    async def delete_sandbox(self, request: Request, name: str) -> Response:
        """``DELETE /v1/sandboxes/{name}``."""
        tenant = self._tenants.tenant(request.headers)
        return _json(200, await self._sandboxes().delete(tenant, name))

    # --- errors ---------------------------------------------------------------------------------

    async def on_error(self, request: Request, error: Exception) -> Response:
        """Answer an error that agentrt raised on purpose."""
        del request
        if not isinstance(error, AgentRTError):
            raise error
        told = refusal(error, retry_after=self._settings.retry_after)
        self._metrics.refused(told.body["error"]["code"])
        return _json(told.status, told.body, told.headers)

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer a wrong path or method."""
        if not isinstance(error, HTTPException):
            raise error
        if error.status_code == 404:
            where = f"{request.method} {request.url.path}"
            remedy = "Use /v1/chat/completions, /v1/completions or /v1/models."
            return await self.on_error(request, NotFound(f"There is no {where}.", remedy=remedy))
        wrong = InvalidRequest(f"{error.detail}.", remedy="See the documentation of the endpoint.")
        told = refusal(wrong, retry_after=self._settings.retry_after)
        return _json(error.status_code, told.body, dict(error.headers or {}))

    async def on_bug(self, request: Request, error: Exception) -> Response:
        """Answer what nobody expected; uvicorn logs the traceback and closes the connection."""
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        response = await self.on_error(
            request, InternalError(f"{type(error).__name__} in the server.")
        )
        response.headers["connection"] = "close"
        return response


def _json(status: int, payload: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(
        encode_json(payload),
        status_code=status,
        headers={**(headers or {}), "content-type": "application/json"},
    )
