"""Runs and comparisons of any size for the report's tests: invented, but consistent, timings."""

from __future__ import annotations

import random

from agentrt.bench.metrics import measure
from agentrt.bench.records import (
    KVSample,
    PinRecord,
    ProgramRecord,
    RunRecord,
    ToolRecord,
    TurnRecord,
)
from agentrt.bench.results import Comparison, WorkloadFacts

NASTY = "</script><img src=x onerror=alert(1)> \"quoted\" 'single' & <!-- \u2028 \x00 \ud800 é"


def turn(program: str = "p0", index: int = 0, **changes: object) -> TurnRecord:
    fields: dict[str, object] = {
        "program": program,
        "tenant": "default",
        "context": "main",
        "index": index,
        "first": index == 0,
        "submitted": 0.0,
        "admitted": 1.0,
        "first_token": 2.0,
        "finished": 4.0,
        "prompt_tokens": 100,
        "ideal_tokens": 40,
        "cached_tokens": 48,
        "prefilled_tokens": 52,
        "output_tokens": 20,
        "preemptions": 0,
        "queue_seconds": 1.0,
        "prefill_seconds": 1.0,
        "decode_seconds": 2.0,
        "reason": "stop",
    }
    return TurnRecord(**{**fields, **changes})


def tool(program: str = "p0", **changes: object) -> ToolRecord:
    fields: dict[str, object] = {
        "program": program,
        "context": "main",
        "name": "bash",
        "start": 4.0,
        "end": 5.5,
    }
    return ToolRecord(**{**fields, **changes})


def empty_run(policy: str = "fcfs", seed: int = 1) -> RunRecord:
    return RunRecord(policy, seed, "simulated", 10_000, "sample", complete=True)


def sample_run(
    policy: str = "fcfs", *, seed: int = 1, programs: int = 3, turns: int = 4, slow: float = 1.0
) -> RunRecord:
    """Return programs of ``turns`` turns each with a tool call and a pin between them."""
    dice = random.Random(f"{policy}/{seed}")
    run = empty_run(policy, seed)
    clock = 0.0
    for place in range(programs):
        clock += dice.expovariate(0.02)
        _add_program(run, dice, f"program-{place}", clock, turns, slow)
    end = max((row.finished for row in run.programs), default=0.0)
    for step in range(programs * turns * 2):
        leased = dice.randrange(9_000)
        pinned, cached = leased // 3, (10_000 - leased) // 2
        free = 10_000 - leased - cached
        time = end * step / (programs * turns * 2)
        run.kv.append(KVSample(time, leased, pinned, cached, free, step % 7, step % 5))
    return run


def _add_program(
    run: RunRecord, dice: random.Random, name: str, arrival: float, turns: int, slow: float
) -> None:
    clock, cached, prompt = arrival, 0, 12_000
    for index in range(turns):
        queue, prefill = dice.expovariate(1 / slow), dice.uniform(0.05, 1.5)
        decode, gap = dice.uniform(0.5, 9.0), dice.expovariate(0.3)
        end = clock + queue + prefill + decode
        run.turns.append(
            turn(
                name,
                index,
                submitted=clock,
                admitted=clock + queue,
                first_token=clock + queue + prefill,
                finished=end,
                prompt_tokens=prompt,
                cached_tokens=cached,
                prefilled_tokens=prompt - cached,
                ideal_tokens=prompt - cached,
                output_tokens=round(decode * 40),
                queue_seconds=queue,
                prefill_seconds=prefill,
                decode_seconds=decode,
            )
        )
        cached, prompt, clock = prompt, prompt + dice.randrange(20, 3000), end + gap
        if index + 1 < turns:
            run.tools.append(tool(name, start=end, end=clock))
            run.pins.append(PinRecord(name, "main", end, clock, 30.0, cached, "handed_off"))
    run.programs.append(ProgramRecord(name, "default", arrival, clock, "finished"))


def comparison_of(runs: list[RunRecord], **changes: object) -> Comparison:
    """Return a comparison whose figures are those of each policy's first run."""
    metrics = {}
    for run in runs:
        metrics.setdefault(run.policy, measure(run))
    facts = WorkloadFacts("sample", "made up", 3, 12, 150_000, 60_000, 2_000, 30.0, False)
    fields: dict[str, object] = {
        "policies": list(dict.fromkeys(run.policy for run in runs)),
        "runs": runs,
        "metrics": metrics,
        "settings": {"rate": 0.02, "cost": {"name": "reference-8b"}},
        "command": "agentrt bench compare sample.jsonl --policies a,b",
        "machine": {"platform": "Linux", "cpus": 2},
        "created": "2026-01-01T00:00:00Z",
    }
    return Comparison(facts, **{**fields, **changes})
