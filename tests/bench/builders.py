"""Small workloads and records for the bench tests."""

from __future__ import annotations

import json
from pathlib import Path

from agentrt.bench.recorder import Recorder
from agentrt.bench.records import RunRecord
from agentrt.bench.workload import Program, Turn, Workload
from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.simulation.cost import CostModel
from agentrt.simulation.run import Simulation

# Sums of these are exact in binary, so that hand-made and simulated times can be compared with ==.
STEP, PREFILL, CONTEXT = 1 / 8, 1 / 64, 1 / 1024
COST = CostModel(STEP, PREFILL, CONTEXT, token_budget=32, max_seqs=8)


def turn(
    prompt: int, output: int, gap: float | None = None, reused: int = 0, context: str = "main"
) -> Turn:
    return Turn(context, prompt, reused, output, gap=gap)


def program(name: str, *turns: Turn, arrival: float = 0.0) -> Program:
    return Program(name, turns, arrival=arrival)


def workload(*programs: Program) -> Workload:
    return Workload("tiny", "tiny.jsonl", programs)


def small_workload(count: int = 4, turns: int = 3) -> Workload:
    """Programs whose turns each extend the one before."""
    made = []
    for number in range(count):
        held, rows = 0, []
        for index in range(turns):
            prompt = held + 40 + 8 * number + index
            rows.append(turn(prompt, 5 + number, gap=0.5 * (index + 1), reused=held))
            held = prompt + 5 + number
        made.append(program(f"p{number}", *rows, arrival=0.25 * number))
    return workload(*made)


def write_workload_file(path: Path, chosen: Workload) -> Path:
    """Write the numbers of a workload by hand, independent of the writer under test."""
    lines = []
    for row in chosen.programs:
        turns = [
            {
                "context": one.context,
                "prompt_tokens": one.prompt_tokens,
                "reused_tokens": one.reused_tokens,
                "output_tokens": one.output_tokens,
                "gap": one.gap,
            }
            for one in row.turns
        ]
        lines.append(json.dumps({"program": row.program, "arrival": row.arrival, "turns": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def play(
    arrivals: list[tuple[float, Program]],
    *,
    policy: str = "fcfs",
    pages: int = 64,
    cost: CostModel = COST,
    max_wait: float = 600.0,
    jump: bool = True,
) -> RunRecord:
    """Simulate and check that no page is lost."""
    made = make_policy(policy, Surroundings(prefill_seconds=cost.prefill_seconds))
    cache = PageCache(pages, 16, made.retention.score)
    config = SchedulerConfig(
        token_budget=cost.token_budget,
        max_seqs=cost.max_seqs,
        max_wait=max_wait,
        reserve="output" if cost.reserve_output else "prompt",
    )
    scheduler = Scheduler(cache, made, config)
    record = RunRecord(policy, 0, "simulated", pages * 16, "tiny")
    simulation = Simulation(arrivals, scheduler, cost, Recorder(record), jump=jump)
    record.complete = simulation.run()
    scheduler.check_integrity()
    assert scheduler.statistics().pages_leased == 0
    return record
