"""One simulated run, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentrt.bench.isolated import SIMULATED_PAGE
from agentrt.bench.policies import ORACLES
from agentrt.bench.recorder import Recorder, RunProgress
from agentrt.bench.records import RunRecord
from agentrt.bench.settings import BenchSettings
from agentrt.bench.steptimes import StepTimes, TimedScheduler
from agentrt.bench.workload import Program
from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError
from agentrt.scheduling import Policy, Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.policy import lru_score
from agentrt.scheduling.surroundings import Surroundings
from agentrt.simulation.cost import CostModel, load_cost
from agentrt.simulation.future import Future
from agentrt.simulation.link import Link
from agentrt.simulation.run import Simulation

__all__ = ["simulate"]


def simulate(
    arrivals: Sequence[tuple[float, Program]],
    record: RunRecord,
    settings: BenchSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[RunProgress], None] | None = None,
    watch: Callable[[float], bool] = lambda now: False,
    times: StepTimes | None = None,
) -> float:
    """Fill ``record`` by a run under a virtual clock; ``record.complete``: it got through.

    ``stop`` and ``watch`` (given the virtual time) end it early; ``times`` collects what the
    scheduler itself takes. Returns the virtual time at which the run ended.
    """
    cost = load_cost(settings.cost)
    oracle = record.policy.partition("=")[0] in ORACLES
    future = Future() if oracle else None
    policy = make_policy(record.policy, _surroundings(record, settings, cost, future))
    scheduler = _scheduler(policy, record, settings, cost, len(arrivals), times)
    link = Link(cost.reload_token_seconds * SIMULATED_PAGE) if settings.host_tokens else None
    simulation = Simulation(
        arrivals,
        scheduler,
        cost,
        Recorder(record),
        stop=lambda: stop() or watch(simulation.clock.now),
        progress=progress,
        link=link,
        future=future,
    )
    record.complete = simulation.run()
    return simulation.clock.now


def _surroundings(
    record: RunRecord, settings: BenchSettings, cost: CostModel, future: Future | None
) -> Surroundings:
    return Surroundings(
        prefill_seconds=cost.prefill_seconds,
        reload_seconds=cost.reload if settings.host_tokens else None,
        capacity=record.pool_tokens,
        tenants=dict(settings.weights),
        foresight=future,
    )


def _scheduler(
    policy: Policy,
    record: RunRecord,
    settings: BenchSettings,
    cost: CostModel,
    programs: int,
    times: StepTimes | None,
) -> Scheduler:
    pages = record.pool_tokens // SIMULATED_PAGE
    if pages < 1:
        raise ConfigError(
            f"--pool is {record.pool_tokens} tokens, less than one page.",
            remedy=f"Give at least {SIMULATED_PAGE}, and enough for the longest prompt.",
        )
    config = SchedulerConfig(
        token_budget=cost.token_budget,
        max_seqs=cost.max_seqs,
        max_wait=settings.max_wait,
        max_waiting=max(10_000, programs),
        reserve="output" if cost.reserve_output else "prompt",
    )
    retention = policy.retention
    cache = PageCache(pages, SIMULATED_PAGE, retention.score, rescore=retention.rescore)
    host_pages = settings.host_tokens // SIMULATED_PAGE
    host = PageCache(host_pages, SIMULATED_PAGE, lru_score) if host_pages else None
    if times is not None:
        return TimedScheduler(times, cache, policy, config, host=host)
    return Scheduler(cache, policy, config, host=host)
