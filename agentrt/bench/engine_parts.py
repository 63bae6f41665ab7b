"""The engine's numbers that no peer has a counterpart of: parts of a step, pages, prefixes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from agentrt.bench import engine_rows as rows
from agentrt.bench.engine_cases import Case, Limits
from agentrt.bench.gpu_roofline import weight_bytes
from agentrt.engine.kernels import choose_kernels
from agentrt.engine.kv import PageCache
from agentrt.engine.model.config import ModelConfig
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.scheduling.plan import Sample, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.tokens import VirtualTokens

__all__ = [
    "PARTS",
    "Part",
    "attention_ratio",
    "fragmentation",
    "host_milliseconds",
    "machine_limits",
    "needs",
]

PAGE = 16


@dataclass(frozen=True, slots=True)
class Part:
    """A number with its target. ``at_least`` says on which side of the target it has to lie."""

    what: str
    target: float
    unit: str
    at_least: bool

    def judge(self, value: float, **more: Any) -> dict[str, Any]:
        """Return the entry of the results file."""
        met = value >= self.target if self.at_least else value <= self.target
        return {
            "what": self.what,
            "value": round(value, 4),
            "unit": self.unit,
            "target": self.target,
            "at_least": self.at_least,
            "met": met,
            **more,
        }


PARTS = {
    "attention": Part(
        "native attention over the torch path, batch 8, context 4096", 2.0, "x", True
    ),
    "second-turn": Part(
        "7.5k cached prefix + 256 new tokens against a cold prefill of 7.75k", 18.0, "x", True
    ),
    "streaming": Part(
        "first token after a 4k-token tool output of 5 s, streamed against not", 5.0, "x", True
    ),
    "host": Part("host and scheduler work of a step at 256 running", 1.0, "ms", False),
    "fragmentation": Part("KV memory lost to page fragmentation", 0.04, "share", False),
    "drafting": Part("steps without drafting over steps with it, miniswe sessions", 1.5, "x", True),
    "neighbour": Part("step beside one busy process over a quiet step", 2.0, "x", False),
    "bandwidth-m135": Part("batch 1, context 512: share of memory bandwidth", 0.75, "share", True),
    "bandwidth-m600": Part("batch 1, context 512: share of memory bandwidth", 0.75, "share", True),
}
"""The numbers by name."""


def attention_ratio(model: str, rounds: int = 8) -> float:
    """Return how many times faster a layer's attention is on native kernels, 8 x 4096 tokens."""
    config = rows.shape(model)
    kernels = [choose_kernels("native", "cpu"), choose_kernels("torch", "cpu")]
    case = rows.AttentionCase(config.num_heads, config.num_kv_heads, config.head_dim, 8, 4096)
    native, oracle = rows.attention_seconds(case, kernels, config, rounds)
    return oracle / native


def machine_limits(clock: Callable[[], float] = time.perf_counter) -> Limits:
    """Probe what memory and arithmetic give on torch's threads: the best of several tries each."""
    a, b = torch.randn(2, 2048, 2048).bfloat16().unbind(0)
    (seconds,) = rows.least([lambda: a @ b], 6, clock)
    return Limits(rows.memory_bandwidth(rounds=12, clock=clock), 2 * 2048**3 / seconds)


def needs(config: ModelConfig, case: Case) -> tuple[float, float]:
    """Return the bytes that a round of a case has to read and the operations it has to do.

    Weights are read once a step; logits are computed for the last token of a prompt only.
    """
    head = config.vocab_size * config.hidden_size
    weights = weight_bytes(config) / 2
    scores = 4 * config.num_layers * config.num_heads * config.head_dim
    if case.kind == "prefill":
        tokens = case.batch * case.context
        flops = 2 * ((weights - head) * tokens + head * case.batch)
        return 2 * weights, flops + scores * tokens * case.context / 2
    kv = case.batch * case.context
    nbytes = 2 * weights + kv * config.kv_bytes_per_token()
    return case.steps * nbytes, case.steps * (2 * weights * case.batch + scores * kv)


def fragmentation(sequences: int = 256, seed: int = 0) -> float:
    """Return the share of leased page slots that hold no token while sequences decode.

    Prompts and outputs are uniform in 100 to 1,024 tokens; real scheduler and pages, no model.
    """
    draw = random.Random(seed)
    pages = sequences * 2048 // PAGE
    policy = make_policy("program-fcfs", Surroundings(capacity=pages * PAGE))
    kv = PageCache(pages, PAGE, policy.retention.score, rescore=policy.retention.rescore)
    scheduler = Scheduler(kv, policy, SchedulerConfig(max_seqs=sequences))
    for index in range(sequences):
        prompt = VirtualTokens.first(draw.randint(100, 1024), index)
        scheduler.submit(
            TurnRequest(str(index), str(index), prompt, draw.randint(100, 1024)), float(index)
        )
    held = used = 0
    for step in range(100_000):
        plan = scheduler.plan(1000.0 + step)
        if not plan.slices:
            break
        for piece in plan.slices:
            if piece.sample and piece.count == 1:
                held += PAGE * len(piece.pages)
                used += piece.start + 1
        scheduler.commit(plan, _tokens(plan), 1000.0 + step)
    return 1 - used / held


def _tokens(plan: StepPlan) -> StepResult:
    return StepResult({piece.turn_id: Sample((7,)) for piece in plan.slices if piece.sample})


def host_milliseconds(context: int = 1024, running: int = 256) -> dict[str, float]:
    """Return the processor milliseconds of a step beside the model, by part."""
    seconds = rows.host_seconds(choose_kernels("native", "cpu"), context, running)
    return {name: round(1e3 * each, 3) for name, each in seconds.items()}
