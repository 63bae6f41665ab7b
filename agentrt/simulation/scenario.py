"""A simulated cluster put together from settings, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agentrt.bench.isolated import isolated_seconds
from agentrt.bench.metrics import measure
from agentrt.bench.policies import ORACLES
from agentrt.bench.recorder import Progress, Recorder
from agentrt.bench.records import RunRecord
from agentrt.bench.workload import Program
from agentrt.cluster import Router, make_placement
from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.policy import lru_score
from agentrt.scheduling.surroundings import Surroundings
from agentrt.simulation.cluster import ClusterSimulation
from agentrt.simulation.cost import CostModel
from agentrt.simulation.future import Future
from agentrt.simulation.groups import Group
from agentrt.simulation.link import Link
from agentrt.simulation.network import Network
from agentrt.simulation.programs import Foretelling
from agentrt.simulation.synthesis import origin
from agentrt.simulation.tally import Tally
from agentrt.simulation.toolhosts import ToolHosts
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["ClusterSettings", "Outcome", "play"]


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What a simulated cluster is made of.

    Args:
        cost: of a step on one worker.
        pool_tokens: KV of one worker.
        workers: how many serve turns, or prefill them if there are ``decoders``.
        decoders: workers that only decode; 0: every worker serves whole turns.
        page_tokens: tokens of a page: larger ones are accounted for faster.
        max_wait: seconds after which a waiting turn outranks all others on its worker.
        steal: whether idle workers steal; None: as the placement was published.
        bandwidth: bytes a second of a worker's link.
        latency: seconds of a transfer beside its bytes.
        host_tokens: a host tier of so many tokens a worker; 0: none.
        tool_slots: tool calls at once on one worker's host; None: without limit.
        tool_memory: bytes for them there; None: without limit.
        scale: ``(seconds, workers more or less)``.
    """

    cost: CostModel
    pool_tokens: int
    workers: int = 1
    decoders: int = 0
    page_tokens: int = 128
    max_wait: float = 600.0
    steal: bool | None = None
    bandwidth: float = 12.5e9
    latency: float = 1e-3
    host_tokens: int = 0
    tool_slots: int | None = None
    tool_memory: int | None = None
    scale: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1 or self.decoders < 0:
            raise ConfigError(
                f"--workers is {self.workers} and {self.decoders} of them decode.",
                remedy="Give --workers 1 or more, and --split PREFILL:DECODE both above 0.",
            )
        if self.page_tokens < 1 or self.pool_tokens < self.page_tokens:
            raise ConfigError(
                f"A pool of {self.pool_tokens} tokens holds no page of {self.page_tokens}.",
                remedy="Give a larger --pool or a smaller --page.",
            )

    def to_json(self) -> dict[str, Any]:
        """Return every setting by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: its records (with their rows only if they were kept) and figures."""

    record: RunRecord
    figures: dict[str, Any]
    placement: str
    wall_seconds: float
    cpu_seconds: float
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Policy and placement."""
        return f"{self.record.policy} / {self.placement}"

    def to_json(self) -> dict[str, Any]:
        """Return everything but the rows."""
        return {
            "policy": self.record.policy,
            "placement": self.placement,
            "seed": self.record.seed,
            "complete": self.record.complete,
            "figures": self.figures,
            "wall_seconds": round(self.wall_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            **self.parts,
        }


def play(
    arrivals: Sequence[tuple[float, Program]],
    record: RunRecord,
    settings: ClusterSettings,
    placement: str,
    *,
    rows: bool = True,
    tool_memory: Callable[[Program, int], int] = lambda program, index: 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Run ``arrivals`` under ``record.policy``; ``record.complete`` says whether it got through.

    With ``rows`` the record keeps every turn, else only sums are kept: for runs of any size.
    """
    network = Network(settings.bandwidth, settings.latency, settings.cost.kv_token_bytes)
    future = Future() if record.policy.partition("=")[0] in ORACLES else None

    def worker(name: str) -> SimulatedWorker:
        return _worker(name, record.policy, settings, len(arrivals), future)

    serving, decoding = _groups(settings, placement, network, record.seed, worker)
    isolated = _isolated([program for _, program in arrivals], settings.cost)
    tally = Tally(record, isolated, interval=10.0)
    tools = _tools(settings)
    simulation = ClusterSimulation(
        arrivals,
        serving,
        Recorder(record) if rows else tally,
        network,
        decoding=decoding,
        tools=tools,
        tool_memory=tool_memory,
        scale=settings.scale,
        foretell=None if future is None else Foretelling(future, settings.cost),
        stop=stop,
        progress=progress,
    )
    wall, used = time.perf_counter(), time.process_time()
    record.complete = simulation.run()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    named = {program.program: isolated[origin(program.program)] for _, program in arrivals}
    figures = measure(record, named) if rows else tally.figures()
    parts = {
        "routers": [asdict(group.router.statistics()) for group in (serving, decoding) if group],
        "network": asdict(network.statistics()),
        "tools": asdict(tools.statistics()) if tools is not None else None,
        "steps": _steps(serving) + _steps(decoding),
    }
    return Outcome(record, figures, placement, wall, used, parts)


def _steps(group: Group | None) -> int:
    workers = group.workers.values() if group is not None else ()
    return sum(worker.scheduler.statistics().steps for worker in workers)


def _isolated(programs: Sequence[Program], cost: CostModel) -> dict[str, float]:
    """Return seconds alone of every recorded program; those that were drawn twice count once."""
    first = {origin(program.program): program for program in programs}
    alone = isolated_seconds(list(first.values()), cost)
    return {name: alone[program.program] for name, program in first.items()}


def _tools(settings: ClusterSettings) -> ToolHosts | None:
    if settings.tool_slots is None and settings.tool_memory is None:
        return None
    hosts = settings.workers + settings.decoders
    return ToolHosts(hosts, settings.tool_slots, settings.tool_memory)


def _groups(
    settings: ClusterSettings,
    placement: str,
    network: Network,
    seed: int,
    worker: Callable[[str], SimulatedWorker],
) -> tuple[Group, Group | None]:
    def group(name: str, count: int) -> Group:
        chosen = make_placement(placement, steal=settings.steal)
        router = Router(chosen, move_seconds=network.seconds, seed=seed)
        made = Group(name, router, worker)
        made.grow(count, 0.0)
        return made

    if not settings.decoders:
        return group("worker", settings.workers), None
    return group("prefill", settings.workers), group("decode", settings.decoders)


def _worker(
    name: str, policy_name: str, settings: ClusterSettings, programs: int, future: Future | None
) -> SimulatedWorker:
    cost, page = settings.cost, settings.page_tokens
    host_pages = settings.host_tokens // page
    policy = make_policy(
        policy_name,
        Surroundings(
            prefill_seconds=cost.prefill_seconds,
            reload_seconds=cost.reload if host_pages else None,
            capacity=settings.pool_tokens,
            foresight=future,
        ),
    )
    config = SchedulerConfig(
        token_budget=cost.token_budget,
        max_seqs=cost.max_seqs,
        max_wait=settings.max_wait,
        max_waiting=max(10_000, programs),
        reserve="output" if cost.reserve_output else "prompt",
    )
    keep, pages = policy.retention, settings.pool_tokens // page
    cache = PageCache(pages, page, keep.score, rescore=keep.rescore)
    host = PageCache(host_pages, page, lru_score) if host_pages else None
    scheduler = Scheduler(cache, policy, config, host=host)
    link = Link(cost.reload_token_seconds * page) if host is not None else None
    return SimulatedWorker(name, scheduler, cache, cost, link=link)
