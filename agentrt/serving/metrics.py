"""Prometheus metrics of one server, in a registry of their own.

What the engine counts is read from its statistics when metrics are asked for; what only the server
sees (latencies, refusals, placements) is counted here. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agentrt.hints import FIELDS, Note
from agentrt.scheduling.plan import SchedulerStatistics, TurnStats
from agentrt.scheduling.tenants import TenantStatistics

if TYPE_CHECKING:
    from agentrt.engine.engine import EngineStatistics
    from agentrt.engine.tiers.base import TierStatistics
    from agentrt.serving.contexts import IndexStatistics

__all__ = ["CONTENT_TYPE", "Metrics", "Source", "TurnMeter"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_MAX_FIELD_NAMES = 100
"""Names that clients choose and that get a label of their own; they could send any number."""


def _bounded(name: str, known: set[str], limit: int) -> str:
    """Return a name as a label: itself while at most ``limit`` are known, else one for the rest."""
    if len(known) < limit:
        known.add(name)
    return name if name in known else "(other)"


@dataclass(frozen=True, slots=True)
class Source:
    """What is read of one model when metrics are asked for.

    Args:
        name: the model's.
        engine: returns the engine's statistics.
        index: likewise for the programs and contexts that are remembered.
        tenants: likewise for the accounts of tenants, by name.
    """

    name: str
    engine: Callable[[], EngineStatistics]
    index: Callable[[], IndexStatistics]
    tenants: Callable[[], Mapping[str, TenantStatistics]]


class Metrics:
    """All metrics of a server.

    Args:
        sources: of each model; of several, what is read from them has a label ``model``.
        clock: seconds, monotonic.
    """

    def __init__(self, sources: Sequence[Source], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(_ModelsCollector(sources))
        self._field_names: set[str] = set()
        self._hint_names: set[str] = {row.label for row in FIELDS}
        self._finished = self._counter("requests", "Turns that ended, by reason", "finish_reason")
        self._refused = self._counter("requests_refused", "Requests refused, by code", "code")
        self._disconnected = self._counter("disconnects", "Turns whose client went away")
        self._placed = self._counter("turns_placed", "Turns, by how their context was found", "how")
        self._unknown = self._counter("unknown_fields", "Unknown body fields", "field")
        self._hints = self._counter(
            "hints", "Ids and hints, by what became of them", "field", "outcome"
        )
        self._retries = self._counter("client_retries", "Requests that say they are a retry")
        self._first = self._histogram("time_to_first_token", "Request to first token", _LATENCY)
        self._between = self._histogram("inter_token_latency", "Between output tokens", _STEP)
        self._whole = self._histogram("e2e_request_latency", "Request to last token", _LATENCY)
        self._queue = self._histogram("request_queue_time", "Waiting for a place", _LATENCY)
        self._prefill = self._histogram("request_prefill_time", "Computing the prompt", _LATENCY)
        self._decode = self._histogram("request_decode_time", "Emitting the output", _LATENCY)

    def turn(self) -> TurnMeter:
        """Begin to time a turn: its request has just arrived."""
        return TurnMeter(self, self._clock)

    def placed(self, how: str) -> None:
        """Count how a turn's context was found."""
        self._placed.labels(how).inc()

    def refused(self, code: str) -> None:
        """Count a request that was refused with an error code."""
        self._refused.labels(code).inc()

    def disconnected(self) -> None:
        """Count a turn whose client went away before its end."""
        self._disconnected.inc()
        self._finished.labels("cancelled").inc()

    def retried(self) -> None:
        """Count a request whose client says that it sent it before."""
        self._retries.inc()

    def unknown_fields(self, names: tuple[str, ...]) -> None:
        """Count body fields that the server does not know."""
        for name in names:
            self._unknown.labels(_bounded(name, self._field_names, _MAX_FIELD_NAMES)).inc()

    def hints(self, notes: tuple[Note, ...]) -> None:
        """Count what became of each id and hint that a request held."""
        for note in notes:
            label = _bounded(note.label, self._hint_names, _MAX_FIELD_NAMES + len(FIELDS))
            self._hints.labels(label, note.outcome).inc()

    def first_token(self, seconds: float) -> None:
        """Note the time from the request to the first token."""
        self._first.observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        """Note the time between one token and the next."""
        self._between.observe(seconds)

    def finished(self, seconds: float, stats: TurnStats) -> None:
        """Note the end of a turn, ``seconds`` after its request."""
        self._finished.labels(stats.reason).inc()
        self._whole.observe(seconds)
        self._queue.observe(stats.queue_seconds)
        self._prefill.observe(stats.prefill_seconds)
        self._decode.observe(stats.decode_seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"agentrt_{name}_total", f"{text}.", labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"agentrt_{name}_seconds", f"{text}.", registry=self._registry, buckets=buckets
        )


class TurnMeter:
    """Times one turn, from the arrival of its request on."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self._newest: float | None = None

    def tokens(self, count: int) -> None:
        """Note that ``count`` tokens have come."""
        if count == 0:
            return
        now = self._clock()
        if self._newest is None:
            self._metrics.first_token(now - self._began)
        else:
            self._metrics.between_tokens((now - self._newest) / count)
        self._newest = now

    def finished(self, stats: TurnStats) -> None:
        """Note the end of the turn."""
        self._metrics.finished(self._clock() - self._began, stats)


class _ModelsCollector(Collector):
    """Turns statistics of the models into metrics when they are asked for."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not ask an engine that has not begun."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        if len(self._sources) == 1:
            yield from _families(self._sources[0])
            return
        merged: dict[str, Metric] = {}
        for source in self._sources:
            for family in _families(source):
                whole = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "model": source.name}
                    whole.add_sample(sample.name, labels, sample.value)
        yield from merged.values()


def _families(source: Source) -> Iterator[Metric]:
    """Yield all that is read of one model."""
    yield from _engine_families(source.engine(), source.index())
    yield from _tenant_families(source.tenants())


def _engine_families(engine: EngineStatistics, index: IndexStatistics) -> Iterator[Metric]:
    """Yield what the engine and the index have counted."""
    now = engine.scheduler
    yield _gauge("requests_running", "Turns that hold pages", now.running)
    yield _gauge("requests_waiting", "Turns that wait for a place", now.waiting)
    yield _gauge("programs", "Programs that are open", index.programs)
    yield _gauge("contexts", "Contexts that are remembered", index.contexts)
    yield _gauge("pins", "Contexts whose KV is kept for their next turn", now.pins)
    yield _pages(
        {
            "free": now.pages_free,
            "cached": now.pages_cached,
            "leased": now.pages_leased - now.pages_pinned,
            "pinned": now.pages_pinned,
        }
    )
    yield _gauge("kv_pages_total", "Pages of the pool", now.pages_total)
    yield _gauge("kv_page_tokens", "Tokens a page holds", now.page_size)
    yield _gauge("longest_wait_seconds", "Longest wait for a place so far", now.longest_wait)
    yield _counter("prompt_tokens", "Prompt tokens of admitted turns", now.prompt_tokens)
    yield _counter("cached_tokens", "Prompt tokens found in the cache", now.cached_tokens)
    yield _counter("prefilled_tokens", "Tokens computed before output", now.prefilled_tokens)
    yield _counter("generation_tokens", "Output tokens", now.output_tokens)
    yield _counter("draft_tokens", "Guessed tokens that were computed", now.drafted_tokens)
    yield _counter("draft_accepted_tokens", "Guesses that came true", now.accepted_tokens)
    yield _counter("preemptions", "Turns that gave their pages back", now.preemptions)
    yield _counter("turns_finished", "Turns that ended", now.turns_finished)
    yield _counter("engine_steps", "Steps of the engine", engine.steps)
    yield _counter("engine_failed_steps", "Steps that failed", engine.failed_steps)
    yield _counter("engine_overlapped_steps", "Steps launched early", engine.overlapped_steps)
    yield _counter("engine_abandoned_steps", "Prefill steps that gave way", engine.abandoned_steps)
    yield _counter("engine_restarts", "Times that the engine started anew", engine.restarts)
    yield _gauge("engine_up", "1 while the engine runs", float(engine.state == "running"))
    yield _counter("engine_step_seconds", "Time spent in steps", engine.step_seconds)
    yield _counter(
        "streamed_tokens", "Tokens computed before they were asked for", now.streamed_tokens
    )
    if engine.tier is not None:
        yield from _tier(now, engine.tier)
    outcomes = CounterMetricFamily(
        "agentrt_pins", "Pins that ended, by outcome.", labels=["outcome"]
    )
    outcomes.add_metric(["handed_off"], now.pins_handed_off)
    outcomes.add_metric(["expired"], now.pins_expired)
    outcomes.add_metric(["broken"], now.pins_broken)
    outcomes.add_metric(["final"], now.pins_final)
    yield outcomes


_TENANT_GAUGES = (
    ("running", "Turns that hold pages"),
    ("waiting", "Turns that wait for a place"),
    ("programs", "Programs under way"),
)
_TENANT_COUNTERS = (
    ("prefilled_tokens", "Tokens computed before output"),
    ("output_tokens", "Output tokens"),
    ("turns_finished", "Turns that ended"),
    ("held_back", "Turns that a quota held back"),
)


def _tenant_families(accounts: Mapping[str, TenantStatistics]) -> Iterator[Metric]:
    """Yield the accounts of tenants; operators name tenants, clients cannot."""
    families: list[tuple[str, GaugeMetricFamily | CounterMetricFamily]] = [
        (field, GaugeMetricFamily(f"agentrt_tenant_{field}", f"{text}.", labels=["tenant"]))
        for field, text in _TENANT_GAUGES
    ]
    families += [
        (field, CounterMetricFamily(f"agentrt_tenant_{field}", f"{text}.", labels=["tenant"]))
        for field, text in _TENANT_COUNTERS
    ]
    for field, family in families:
        for name, account in accounts.items():
            family.add_metric([name], getattr(account, field))
        yield family


def _tier(now: SchedulerStatistics, tier: TierStatistics) -> Iterator[Metric]:
    """Yield what is copied between the pool and host memory."""
    yield _gauge("host_kv_pages_total", "Pages of KV that fit host memory", tier.host_pages)
    yield _gauge("host_kv_transfers_under_way", "Copies that are not over", now.transfers)
    yield _counter("host_kv_copies", "Runs of pages copied", tier.copies)
    yield _counter("host_kv_failed_transfers", "Transfers that failed", tier.failed)
    yield _counter("prefetched_tokens", "Tokens brought back ahead", now.prefetched_tokens)
    if tier.files is not None:
        yield _gauge("kv_files", "Pages of KV in files", tier.files.files)
        yield _gauge("kv_files_bytes", "Bytes of these files", tier.files.bytes)
        for name in ("written", "read", "removed", "corrupt", "refused"):
            yield _counter(f"kv_files_{name}", f"Files {name}", getattr(tier.files, name))
    for kind, text in (("stored", "to"), ("loaded", "from")):
        for unit in ("pages", "bytes", "seconds"):
            value = getattr(tier, f"{kind}_{unit}")
            yield _counter(
                f"host_kv_{kind}_{unit}", f"{unit.capitalize()} copied {text} host memory", value
            )


def _pages(states: dict[str, int]) -> Metric:
    text = "Pages by state; turns may share pinned ones."
    family = GaugeMetricFamily("agentrt_kv_pages", text, labels=["state"])
    for state, pages in states.items():
        family.add_metric([state], pages)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"agentrt_{name}", f"{text}.", value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"agentrt_{name}", f"{text}.", value)
