"""How long each program takes with the simulated engine to itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentrt.bench.recorder import Recorder
from agentrt.bench.records import RunRecord
from agentrt.bench.workload import Program
from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from agentrt.simulation.cost import CostModel
from agentrt.simulation.run import Simulation

__all__ = ["SIMULATED_PAGE", "isolated_seconds"]

SIMULATED_PAGE = 16


def isolated_seconds(programs: Sequence[Program], cost: CostModel) -> dict[str, float]:
    """Return how long each program takes with the simulated engine to itself."""
    return {
        program.program: _side_by_side(program, cost)
        if program.branches
        else _one_by_one(program, cost)
        for program in programs
    }


def _one_by_one(program: Program, cost: CostModel) -> float:
    total = 0.0
    for turn in program.turns:
        # Only whole pages are found again, and never the prompt's last token.
        cached = min(turn.reused_tokens, turn.prompt_tokens - 1) // SIMULATED_PAGE * SIMULATED_PAGE
        new = turn.prompt_tokens - cached
        total += cost.turn_seconds(new, turn.prompt_tokens, turn.output_tokens)
    return total + sum(turn.gap or 0.0 for turn in program.turns[:-1])


def _side_by_side(program: Program, cost: CostModel) -> float:
    """Turns side by side share the engine: what that takes, only a run can tell."""
    held: dict[str, int] = {}
    for turn in program.turns:
        tokens = turn.prompt_tokens + turn.output_tokens
        held[turn.context] = max(held.get(turn.context, 0), tokens)
    pages = 2 * sum(held.values()) // SIMULATED_PAGE + len(program.turns)
    policy = make_policy("program-fcfs")
    cache = PageCache(pages, SIMULATED_PAGE, policy.retention.score)
    config = SchedulerConfig(cost.token_budget, cost.max_seqs, math.inf)
    record = RunRecord(policy.name, 0, "simulated", pages * SIMULATED_PAGE, program.program)
    scheduler = Scheduler(cache, policy, config)
    Simulation([(0.0, program)], scheduler, cost, Recorder(record)).run()
    return record.programs[0].finished
