"""One simulated run, put together from the settings; and how long each program takes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

__all__ = ["SIMULATED_PAGE", "isolated_seconds", "simulate"]

SIMULATED_PAGE = 16


def isolated_seconds(programs: Sequence[Program], cost: CostModel) -> dict[str, float]:
    """Return how long each program takes with the simulated engine to itself."""
    return {program.program: _alone(program, cost) for program in programs}


def _alone(program: Program, cost: CostModel) -> float:
    if program.branches:
        return _simulated_alone(program, cost)
    total = 0.0
    for turn in program.turns:
        # Only whole pages are found again, and never the prompt's last token.
        cached = min(turn.reused_tokens, turn.prompt_tokens - 1) // SIMULATED_PAGE * SIMULATED_PAGE
        new = turn.prompt_tokens - cached
        total += cost.turn_seconds(new, turn.prompt_tokens, turn.output_tokens)
    return total + sum(turn.gap or 0.0 for turn in program.turns[:-1])


def _simulated_alone(program: Program, cost: CostModel) -> float:
    """Turns side by side share the engine: what that takes, only a run can tell."""
    held: dict[str, int] = {}
    for turn in program.turns:
        tokens = turn.prompt_tokens + turn.output_tokens
        held[turn.context] = max(held.get(turn.context, 0), tokens)
    pool = 2 * sum(held.values()) + SIMULATED_PAGE * len(program.turns)
    record = RunRecord("program-fcfs", 0, "simulated", pool, program.program)
    settings = BenchSettings(engine="simulated", max_wait=float("inf"))
    policy = make_policy(record.policy)
    scheduler = _scheduler(policy, record, settings, cost, 1, None)
    Simulation([(0.0, program)], scheduler, cost, Recorder(record)).run()
    return record.programs[0].finished


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
