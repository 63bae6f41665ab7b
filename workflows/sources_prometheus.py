"""Prometheus' HTTP API: ``query`` and ``query_range``, by GET, within one total time limit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio

from agentrt.workflows.queries_model import BoundQuery, Control, QueryFailed, QueryResult
from agentrt.workflows.queries_values import parse_timestamp
from agentrt.workflows.sources_common import failed, limited, stopped

__all__ = ["ask_prometheus"]

_MOST_BYTES = 32 * 2**20
_POLL = 0.05


def ask_prometheus(
    bound: BoundQuery, control: Control, *, environment: Mapping[str, str] = os.environ
) -> QueryResult:
    """Answer a PromQL query; columns are ``ts``, ``value`` and one for each label.

    ``environment`` holds the bearer token that the source's ``token_env`` names.

    Raises:
        QueryTimeout: the limit passed, or it was cancelled; the connection was closed.
        QueryFailed: no such server, an error of it, or an answer that is too large or nonsense.
    """
    path = "query_range" if bound.start else "query"
    url = f"{_base(bound)}/api/v1/{path}"
    status, body = anyio.run(_fetch, bound, control, url, _headers(bound, environment))
    data = _data(bound, status, body)
    try:
        return _table(bound, data)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _nonsense(bound, f"an answer of another shape ({error!r})") from error


def _base(bound: BoundQuery) -> str:
    url = str(bound.source.settings["url"]).rstrip("/")
    parts = urlsplit(url)
    if parts.username or parts.password:
        # The address is named in messages and logs.
        raise failed(bound, "the url holds a password", "Put a token in token_env instead.")
    if parts.scheme not in ("http", "https"):
        raise failed(bound, f"{url!r} is no HTTP address", "Write http://HOST:PORT.")
    return url


def _headers(bound: BoundQuery, environment: Mapping[str, str]) -> dict[str, str]:
    name = bound.source.settings.get("token_env")
    if not name:
        return {}
    if name not in environment:
        raise failed(bound, f"the variable {name} is not set", f"Put the server's token in {name}.")
    return {"Authorization": f"Bearer {environment[name]}"}


def _asked(bound: BoundQuery) -> dict[str, str]:
    if bound.start:
        return {
            "query": bound.statement,
            "start": bound.start,
            "end": bound.end,
            "step": bound.step,
        }
    return {"query": bound.statement, **({"time": bound.end} if bound.end else {})}


async def _fetch(
    bound: BoundQuery, control: Control, url: str, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    """Return status and body; the total time, slow answers included, is within the limit."""
    found: list[tuple[int, bytes] | QueryFailed] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_watch, control.deadline(), group.cancel_scope)
        # An error that left the group would be wrapped in an ExceptionGroup.
        try:
            found.append(await _get(bound, url, headers))
        except QueryFailed as error:
            found.append(error)
        group.cancel_scope.cancel()
    if not found:
        raise stopped(bound, control)
    if isinstance(found[0], QueryFailed):
        raise found[0]
    return found[0]


async def _watch(stop: Callable[[], bool], scope: anyio.CancelScope) -> None:
    for _ in iter(stop, True):
        await anyio.sleep(_POLL)
    scope.cancel()


async def _get(bound: BoundQuery, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    try:
        import httpx
    except ImportError as error:
        remedy = "Install it: pip install 'agentrt[serve]'."
        raise failed(bound, "Prometheus sources need httpx", remedy) from error
    body = bytearray()
    try:
        # No redirects and no proxy of the environment: the template says which server is asked.
        async with (
            httpx.AsyncClient(timeout=None, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url, params=_asked(bound), headers=dict(headers)) as reply,
        ):
            async for chunk in reply.aiter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise _nonsense(bound, f"more than {_MOST_BYTES >> 20} MiB")
            return reply.status_code, bytes(body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"{url} does not answer: {error or type(error).__name__}"
        raise failed(
            bound, what, "Check the url of the source, and that the server runs."
        ) from error


def _data(bound: BoundQuery, status: int, body: bytes) -> Mapping[str, Any]:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    said = reply if isinstance(reply, dict) else {}
    if said.get("status") == "error":
        what = f"the server says {said.get('errorType')}: {said.get('error')}"
        raise failed(bound, what, "Try the query in the server's own page.")
    if status != 200:
        raise failed(bound, f"the server answered with HTTP {status}", "Check the url and token.")
    data = said.get("data")
    if said.get("status") != "success" or not isinstance(data, dict):
        raise _nonsense(bound, "an answer that is not Prometheus' JSON")
    return data


def _table(bound: BoundQuery, data: Mapping[str, Any]) -> QueryResult:
    kind, result = data["resultType"], data["result"]
    if kind in ("scalar", "string"):
        return limited(bound, ("ts", "value"), [_sample(result)])
    if kind not in ("vector", "matrix"):
        raise ValueError(f"resultType {kind!r}")
    labels = sorted({label for series in result for label in series["metric"]})
    rows = _rows(result, labels, "value" if kind == "vector" else "values")
    return limited(bound, ("ts", "value", *map(_column, labels)), rows)


def _rows(result: list[Any], labels: list[str], key: str) -> Iterator[list[Any]]:
    for series in result:
        samples = [series["value"]] if key == "value" else series.get("values", [])
        cells = [series["metric"].get(label) for label in labels]
        for sample in samples:
            yield [*_sample(sample), *cells]


def _sample(sample: list[Any]) -> list[Any]:
    moment = parse_timestamp(float(sample[0])).replace(tzinfo=None).isoformat() + "Z"
    try:
        return [moment, float(sample[1])]
    except ValueError:
        return [moment, str(sample[1])]


def _column(label: str) -> str:
    """Return the column of a label; ``label_`` keeps it apart from the two of the sample."""
    return {"__name__": "metric", "ts": "label_ts", "value": "label_value"}.get(label, label)


def _nonsense(bound: BoundQuery, what: str) -> QueryFailed:
    remedy = "Check that the url is a Prometheus server, or ask for less."
    return failed(bound, f"{bound.source.settings['url']} sent {what}", remedy)
