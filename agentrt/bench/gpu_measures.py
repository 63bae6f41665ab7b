"""The rows of the GPU table: what each says, must reach, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from agentrt.bench.gpu_plan import Figure, Row

if TYPE_CHECKING:  # whoever only names the rows needs no torch
    from agentrt.bench.gpu_lab import Lab
    from agentrt.bench.gpu_profile import Kernels
    from agentrt.bench.gpu_rows import DecodeCase

__all__ = ["ROWS", "Measure", "measures"]

Measure: TypeAlias = "Callable[[Lab, Kernels | None], Figure]"

ROWS = [
    Row("step-0.6B", "0.6B, step of batch 1 at 1k", "ms", "most", 1.0, 25, "0.6B"),
    Row("throughput-0.6B", "256 requests, 0.6B", "tokens/s", "share", 0.55, 40, "0.6B"),
    Row("decode-1", "8B bf16, batch 1 at 1k", "tokens/s", "share", 0.80, 25, "8B"),
    Row("decode-64", "8B bf16, batch 64 at 1k", "tokens/s", "share", 0.70, 20, "8B"),
    Row("decode-256", "8B bf16, batch 256 at 1k", "tokens/s", "share", 0.65, 30, "8B"),
    Row("kernel", "decode kernel alone", "GB/s", "share", 0.85, 15, "8B"),
    Row("prefill", "prefill of 8k tokens, 8B", "TFLOP/s", "share", 0.55, 20, "8B"),
    Row("idle", "GPU idle between steps, batch 256", "share", "most", 0.03, 30, "8B"),
    Row("first-token", "short turn beside a 32k prefill", "times alone", "most", 3.0, 30, "8B"),
    Row("reload", "reload of 32k tokens of KV", "times faster", "least", 20.0, 25, "8B"),
    Row("throughput-8B", "256 requests, 8B", "tokens/s", "share", 0.65, 60, "8B"),
    Row("fp8-kv", "8B, batch 256 at 1k, KV in fp8", "tokens/s", seconds=25, model="8B"),
    Row("early-off", "8B, batch 64, no step early", "tokens/s", seconds=20, model="8B"),
    Row("graphs-off", "8B, batch 64, no graphs", "tokens/s", seconds=20, model="8B"),
    Row("fp8-weights", "8B, batch 1, weights in fp8", "tokens/s", seconds=25, model="8B"),
    Row("small-early-off", "0.6B, batch 1, no step early", "ms", seconds=20, model="0.6B"),
    Row("small-graphs-off", "0.6B, batch 1, no graphs", "ms", seconds=20, model="0.6B"),
]
"""In the order of measuring: those with a target first, rows of a model together."""


def measures(lab: Lab) -> Mapping[str, Measure]:
    """Return what measures each of :data:`ROWS`."""
    from agentrt.bench import gpu_rows as rows
    from agentrt.bench import gpu_serving as serving

    setting = lab.setting
    one, some, many = (rows.DecodeCase(setting.big, batch) for batch in setting.batches)
    small = replace(one, model=setting.small)

    def decode(case: DecodeCase) -> Measure:
        return lambda lab, profile: rows.decode(lab, case, profile)

    def step(case: DecodeCase) -> Measure:
        return lambda lab, profile: rows.step_milliseconds(lab, case, profile)

    return {
        "step-0.6B": step(small),
        "throughput-0.6B": lambda lab, profile: serving.throughput(lab, setting.small, profile),
        "decode-1": decode(one),
        "decode-64": decode(some),
        "decode-256": decode(many),
        "kernel": rows.attention_rate,
        "prefill": rows.prefill,
        "idle": serving.idle,
        "first-token": serving.first_token,
        "reload": rows.reload,
        "throughput-8B": lambda lab, profile: serving.throughput(lab, setting.big, profile),
        "fp8-kv": decode(replace(many, kv_dtype="fp8")),
        "early-off": decode(replace(some, early=False)),
        "graphs-off": decode(replace(some, graphs=False)),
        "fp8-weights": decode(replace(one, quant="fp8")),
        "small-early-off": step(replace(small, early=False)),
        "small-graphs-off": step(replace(small, graphs=False)),
    }
