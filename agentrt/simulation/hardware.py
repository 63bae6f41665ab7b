"""Cost models from published figures of GPUs and models.

A step reads the weights and every context once, so its time is bytes over bandwidth; a prefill
computes two operations a weight and token, so its time is operations over speed. What a real engine
adds is in four constants, chosen so that the five published rows for one H100 in ``PUBLISHED``
come out within 10 % (``tests/simulation/test_hardware.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from agentrt.errors import ConfigError
from agentrt.simulation.cost import CostModel

__all__ = ["GPUS", "MODELS", "PUBLISHED", "Gpu", "Model", "gpu_cost", "pool_tokens"]

_T = TypeVar("_T")

BANDWIDTH_SHARE = 0.85
SPEED_SHARE = 0.85
STEP_OVERHEAD = 0.5e-3
SEQUENCE_SECONDS = 20e-6
MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Gpu:
    """``bandwidth``: bytes a second that a copy reaches; ``speed``: bf16 operations a second that a
    matrix product reaches; ``memory``: bytes; ``host_bandwidth``: bytes a second from host memory.
    """

    bandwidth: float
    speed: float
    memory: float
    host_bandwidth: float
    source: str


@dataclass(frozen=True, slots=True)
class Model:
    """``weights``: bytes read by a step; ``kv``: bytes of KV a token; ``attention``: operations for
    each pair of a new token and one before it (four times layers, heads and head size)."""

    weights: float
    kv: int
    attention: float


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(1.7e12, 0.24e15, 80e9, 25e9, "A100-80G: 1.7 TB/s reached (gpt-fast), 312 TFLOP/s"),
    "h100": Gpu(3.0e12, 0.75e15, 80e9, 50e9, "H100 SXM: 3.35 TB/s, 989 TFLOP/s on the data sheet"),
    "h200": Gpu(4.3e12, 0.75e15, 141e9, 50e9, "H200: 4.8 TB/s, 989 TFLOP/s on the data sheet"),
}

MODELS: Mapping[str, Model] = {
    "qwen3-0.6b": Model(1.19e9, 112 * 1024, 4 * 28 * 16 * 128),
    "qwen3-1.7b": Model(3.44e9, 112 * 1024, 4 * 28 * 16 * 128),
    "qwen3-4b": Model(8.04e9, 144 * 1024, 4 * 36 * 32 * 128),
    "qwen3-8b": Model(15.14e9, 144 * 1024, 4 * 36 * 32 * 128),
    "qwen3-14b": Model(27.98e9, 160 * 1024, 4 * 40 * 40 * 128),
    "llama-3.1-8b": Model(15.01e9, 128 * 1024, 4 * 32 * 32 * 128),
}

PUBLISHED: tuple[tuple[int, int, int, float], ...] = (
    (128, 128, 512, 14_540),
    (128, 1024, 396, 13_322),
    (2048, 2048, 40, 2_815),
    (1024, 128, 80, 3_018),
    (8192, 512, 7, 502),
)
"""Prompt and output tokens, users, output tokens a second: one H100, Qwen3-8B bf16, vLLM 0.30
(silybench-data, 2026-09)."""


def gpu_cost(gpu: str, model: str) -> CostModel:
    """Return the cost model of a model on a GPU.

    Raises:
        ConfigError: one of them is not known.
    """
    device, net = _known("--gpu", gpu, GPUS), _known("--model", model, MODELS)
    bandwidth, speed = BANDWIDTH_SHARE * device.bandwidth, SPEED_SHARE * device.speed
    return CostModel(
        step_seconds=STEP_OVERHEAD + net.weights / bandwidth,
        # Two operations a weight, two bytes a weight.
        prefill_token_seconds=net.weights / speed,
        context_token_seconds=net.kv / bandwidth,
        max_seqs=256,
        prefill_pair_seconds=net.attention / speed,
        sequence_seconds=SEQUENCE_SECONDS,
        reload_token_seconds=net.kv / device.host_bandwidth,
        kv_token_bytes=net.kv,
        source=f"{model} in bf16 on {gpu}, from published figures: {device.source}",
    )


def pool_tokens(gpu: str, model: str) -> int:
    """Return the tokens of KV that fit beside the weights in 0.9 of the GPU's memory.

    Raises:
        ConfigError: one of them is not known.
    """
    device, net = _known("--gpu", gpu, GPUS), _known("--model", model, MODELS)
    return int((MEMORY_SHARE * device.memory - net.weights) / net.kv)


def _known(flag: str, name: str, table: Mapping[str, _T]) -> _T:
    if name not in table:
        raise ConfigError(
            f"{flag} {name} is not known.",
            remedy=f"Choose one of: {', '.join(sorted(table))}; or give a file with --cost.",
        )
    return table[name]
