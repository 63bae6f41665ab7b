"""What the engine's parts cost on this CPU: measuring functions, without a script's words around.

Models are the true shapes with random weights from a seed, made in memory. Other work on the
machine disturbs: the least of several runs is kept, and what is compared is measured in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from agentrt.bench.gpu_roofline import weight_bytes
from agentrt.bench.overhead import Load, measure_overhead
from agentrt.bench.random_model import random_model
from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.kernels import Kernels, make_attention, prepare
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.linear import (
    Int8Linear,
    Linear,
    LinearLayer,
    OneDnnLinear,
    PackedLinear,
)
from agentrt.engine.model.recipe import config_json
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.errors import ConfigError
from agentrt.scheduling.plan import SeqSlice, StepPlan

if TYPE_CHECKING:
    from agentrt.engine.attention.base import Attention

__all__ = [
    "MOST_BYTES",
    "SHAPES",
    "AttentionCase",
    "Bench",
    "Clock",
    "attention_seconds",
    "facts",
    "host_seconds",
    "least",
    "linear_seconds",
    "memory_bandwidth",
    "shape",
]

SHAPES = {"m135": ("llama", "135m"), "m600": ("qwen3", "600m")}
"""The shapes of SmolLM2-135M and Qwen3-0.6B: architecture and size of our recipes."""

PAGE = 16
MOST_BYTES = 4 * 10**9
"""Keys and values of all sequences of a batch: larger batches are not measured."""

Clock: TypeAlias = Callable[[], float]


def shape(name: str) -> ModelConfig:
    """Return the configuration of one of :data:`SHAPES`."""
    arch, size = SHAPES[name]
    raw = config_json(arch, size, dtype="bfloat16", eos=2, pad=0)
    return ModelConfig.from_mapping(raw, Path(f"{name}.json"))


def least(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Return the least seconds of each of ``runs``, called in turns for ``rounds`` rounds."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = clock()
            run()
            best[index] = min(best[index], clock() - start)
    return best


def memory_bandwidth(
    size: int = 512 * 2**20, rounds: int = 5, clock: Clock = time.perf_counter
) -> float:
    """Return bytes a second that this process reads from memory on torch's threads."""
    memory = torch.ones(size // 4, dtype=torch.float32)
    (seconds,) = least([memory.sum], rounds, clock)
    return size / seconds


def _layout(starts: Sequence[int], count: int, seed: int = 0) -> tuple[BatchLayout, int]:
    """Return slices of ``count`` tokens at ``starts`` on pages that lie anywhere, and the pool."""
    needed = [-(-(start + count) // PAGE) for start in starts]
    places = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(seed)).tolist()
    slices = []
    for start, pages in zip(starts, needed, strict=True):
        slices.append(SliceLayout(start, count, places[:pages]))
        del places[:pages]
    return BatchLayout(tuple(slices)), sum(needed)


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """One layer's attention: ``batch`` sequences, each of ``context`` tokens after the step."""

    heads: int
    kv_heads: int
    dim: int
    batch: int
    context: int
    count: int = 1
    dtype: torch.dtype = torch.bfloat16

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of keys and values that one call reads."""
        return 2 * self.batch * self.context * self.kv_heads * self.dim * self.dtype.itemsize


def attention_seconds(
    case: AttentionCase,
    kernels: Sequence[Kernels],
    config: ModelConfig,
    rounds: int = 10,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Return the seconds of one layer's attention on each of ``kernels``, measured in turns."""
    config = replace(
        config,
        num_layers=1,
        windows=(None,),
        num_heads=case.heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.dim,
    )
    layout, pages = _layout([case.context - case.count] * case.batch, case.count)
    tokens = case.batch * case.count
    q = torch.randn(tokens, case.heads, case.dim).to(case.dtype)
    k, v = torch.randn(2, tokens, case.kv_heads, case.dim).to(case.dtype).unbind(0)
    runs = []
    for kernel in kernels:
        step = make_attention(kernel, config, pages, PAGE, case.dtype).plan(layout)
        runs.append(lambda step=step: step.attend(0, q, k, v))
    return least(runs, rounds, clock)


def linear_seconds(
    config: ModelConfig, kernels: Kernels, tokens: int, rounds: int, clock: Clock
) -> dict[str, float]:
    """Return the seconds of one layer's matrices by how they are packed, measured in turns.

    As many layers as do not fit a cache are gone through, as a model does.
    """
    library = kernels.library
    if library is None:
        raise ConfigError("There are no native kernels to measure.", remedy=kernels.why)
    model = random_model(replace(config, num_layers=6, windows=(None,) * 6), torch.bfloat16)
    plain: list[Linear] = []

    def note(layer: LinearLayer) -> LinearLayer:
        plain.append(cast("Linear", layer))
        return layer

    model.rebuild(note)
    layers = plain[:-1]
    kinds: dict[str, list[LinearLayer]] = {
        "own": [PackedLinear(library, layer) for layer in layers],
        "onednn": [OneDnnLinear(layer) for layer in layers],
        "plain": [*layers],
        "int8": [Int8Linear(library, layer) for layer in layers],
    }
    inputs = [torch.randn(tokens, layer.weight.shape[1]).bfloat16() for layer in layers]

    def through(packed: Sequence[LinearLayer]) -> Callable[[], None]:
        def run() -> None:
            for layer, x in zip(packed, inputs, strict=True):
                layer(x)

        return run

    seconds = least([through(packed) for packed in kinds.values()], rounds, clock)
    return {kind: each / 6 for kind, each in zip(kinds, seconds, strict=True)}


class _Silent:
    """Stands for a model that takes no time: what is left of a step is the host's work."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.bfloat16
        self._logits = torch.zeros(0, config.vocab_size)

    def forward(self, tokens: object, positions: object, step: object, rows: torch.Tensor) -> Any:
        if len(self._logits) != len(rows):
            self._logits = torch.randn(len(rows), self.config.vocab_size)
        return self._logits


def host_seconds(
    kernels: Kernels, context: int, running: int = 256, rounds: int = 30
) -> dict[str, float]:
    """Return the processor seconds that the host works for a step of ``running`` decodes.

    ``runner`` builds the batch, plans attention and takes the samples (over 64 tokens: choosing
    among more is the model's side), the least of all rounds; ``scheduler`` plans and commits, the
    median of its steps.
    """
    config = replace(shape("m135"), num_layers=1, windows=(None,), vocab_size=64)
    layout, pages = _layout([context] * running, rounds + 1)
    attention = make_attention(kernels, config, pages, PAGE, torch.bfloat16)
    backend = TorchBackend(cast("Decoder", _Silent(config)), attention)
    for index in range(running):
        backend.open(str(index), [1] * (context + 1), SamplingParams(temperature=0.0))
    slices = [SeqSlice(str(i), context, 1, s.pages, True) for i, s in enumerate(layout.slices)]

    def step() -> None:
        backend.run(StepPlan(tuple(slices)))
        for piece in slices:
            piece.start += 1

    (runner,) = least([step], rounds, time.thread_time)
    times = measure_overhead("program-fcfs", Load(programs=500, seats=running, steps=100))
    return {"runner": runner, "scheduler": statistics.median(times.steps)}


class Bench:
    """A random model on its kernels, with a pool of pages for one batch at a time.

    Args:
        config: the shape.
        kernels: what it runs on.
        dtype: of weights and pages.
        quant: as ``prepare``.
        seed: of the weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        dtype: torch.dtype = torch.bfloat16,
        quant: str | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config
        self._kernels = kernels
        self._model = random_model(config, dtype, seed)
        prepare(self._model, kernels, quant)
        self._attention: Attention | None = None

    def step(self, batch: int, context: int, count: int = 1) -> Callable[[], torch.Tensor]:
        """Return a function that runs one step: planning, all layers, logits of the last tokens.

        Args:
            batch: sequences in it.
            context: tokens of each one after the step.
            count: tokens that each one computes: 1 decodes, ``context`` prefills.
        """
        layout, pages = _layout([context - count] * batch, count)
        if self._attention is None or self._attention.num_pages < pages:
            self._attention = None  # the old pool goes before the new one comes
            self._attention = make_attention(
                self._kernels, self.config, pages, PAGE, self._model.dtype
            )
        attention = self._attention
        tokens = torch.arange(batch * count) % self.config.vocab_size
        positions = torch.arange(context - count, context).repeat(batch)
        rows = torch.arange(count - 1, batch * count, count)

        def run() -> torch.Tensor:
            return self._model.forward(tokens, positions, attention.plan(layout), rows)

        return run

    def step_bytes(self, batch: int, context: int) -> int:
        """Return the bytes that a decoding step has to read: weights, keys and values."""
        return weight_bytes(self.config) + batch * context * self.config.kv_bytes_per_token()


def facts(kernels: Kernels) -> dict[str, Any]:
    """Return what a row depends on besides the machine: torch, threads, kernels."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": kernels.name,
        "why": kernels.why,
    }
