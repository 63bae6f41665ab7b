"""Where GPU rows are measured: a device, sizes, and the engine's parts put together for them.

The same functions run on a GPU at true sizes and on a CPU at tiny ones: only a :class:`Setting`
differs. Times are of the host's clock around work that was waited for.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from agentrt.bench.gpu_roofline import Rates
from agentrt.bench.gpu_shapes import gpu_shape
from agentrt.bench.random_model import random_model
from agentrt.engine.attention.base import Attention
from agentrt.engine.backend import TurnBackend
from agentrt.engine.engine import Engine
from agentrt.engine.gpu.choose import choose_steps, make_backend
from agentrt.engine.kernels import Kernels, choose_kernels, make_attention, prepare, warm_up
from agentrt.engine.kv import PageCache
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder
from agentrt.runtime import NEWCOMER_SHARE
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.scheduling.cost import OnlinePrefillCost

__all__ = ["DRY", "REAL", "Lab", "Setting", "measure_rates"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how large. The defaults are the table's own sizes."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    big: str = "8B"
    small: str = "0.6B"
    kernels: str = "triton"
    page: int = 64
    """Tokens of a page."""
    context: int = 1024
    """Tokens of each sequence that decodes."""
    batches: tuple[int, int, int] = (1, 64, 256)
    steps: int = 48
    """Steps of a round."""
    rounds: int = 3
    """Of which the median counts."""
    budget: int = 2048
    """Tokens of a step of the engine."""
    requests: int = 256
    lengths: tuple[int, int] = (100, 1024)
    kernel_batch: int = 64
    kernel_context: int = 4096
    prefill: int = 8192
    long: int = 32768
    short: int = 128
    """Tokens of a short turn's prompt."""
    copied: int = 2 << 30
    """Bytes of the copy that measures bandwidth."""
    matrix: tuple[int, int, int] = (8192, 8192, 8192)


REAL = Setting()
DRY = Setting(
    device="cpu",
    dtype=torch.float32,
    big="tiny-untied",
    small="tiny-tied",
    page=16,
    context=6,
    batches=(1, 2, 2),
    steps=2,
    rounds=1,
    budget=8,
    requests=2,
    lengths=(2, 4),
    kernel_batch=2,
    kernel_context=20,
    prefill=20,
    long=48,
    short=4,
    copied=1 << 20,
    matrix=(64, 64, 64),
)
"""Sizes that Triton's interpreter gets through in seconds."""


def measure_rates(setting: Setting) -> Rates:
    """Measure what the device copies (read and written) and multiplies in a second."""
    device = torch.device(setting.device)
    source = torch.ones(setting.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _best(device, lambda: target.copy_(source))
    m, k, n = setting.matrix
    a = torch.randn(m, k, device=device).to(setting.dtype)
    b = torch.randn(n, k, device=device).to(setting.dtype)
    matrix = _best(device, lambda: torch.nn.functional.linear(a, b))
    return Rates(2 * setting.copied / copy, 2 * m * n * k / matrix)


def _best(
    device: torch.device, run: Callable[[], object], times: int = 10, rounds: int = 5
) -> float:
    """Return the least seconds of a call, over rounds of ``times`` that are waited for together."""
    run()
    best = float("inf")
    for _ in range(rounds):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(times):
            run()
        wait_for(device)
        best = min(best, (time.perf_counter() - start) / times)
    return best


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(slots=True, eq=False)
class Lab:
    """One model at a time on the device, and what is made of it."""

    setting: Setting
    rates: Rates
    _model: Decoder | None = field(default=None, init=False)
    _made: tuple[str, str | None] | None = field(default=None, init=False)
    _kernels: Kernels | None = field(default=None, init=False)

    @property
    def device(self) -> torch.device:
        """Return the device."""
        return torch.device(self.setting.device)

    @property
    def kernels(self) -> Kernels:
        """Return what the models run on."""
        if self._kernels is None:
            self._kernels = choose_kernels(self.setting.kernels, self.device.type)
        return self._kernels

    def model(self, name: str, quant: str | None = None) -> Decoder:
        """Return the model of a shape; the one before it is let go."""
        if self._made != (name, quant) or self._model is None:
            self.clear()
            self._model = random_model(
                gpu_shape(name), self.setting.dtype, 0, self.device, fp8=quant == "fp8"
            )
            prepare(self._model, self.kernels, quant)
            self._made = (name, quant)
        return self._model

    def clear(self) -> None:
        """Let the model go, and what the allocator keeps."""
        self._model = self._made = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def pages(self, tokens: int) -> int:
        """Return how many pages hold ``tokens`` tokens."""
        return -(-tokens // self.setting.page)

    def attention(self, config: ModelConfig, pages: int, kv_dtype: str = "auto") -> Attention:
        """Return attention over a new pool."""
        setting = self.setting
        return make_attention(
            self.kernels, config, pages, setting.page, setting.dtype, self.device, kv_dtype
        )

    def backend(
        self, model: Decoder, attention: Attention, largest: int, *, graphs: bool = True
    ) -> TurnBackend:
        """Return what computes steps of ``largest`` sequences at most, as in an engine."""
        mode = partial(choose_steps, "on" if graphs else "off", "on", self.device.type)
        backend, _ = make_backend(model, lambda: attention, mode, largest)
        return backend

    def engine(
        self,
        model: Decoder,
        pages: int,
        largest: int,
        around: Callable[[TurnBackend], TurnBackend],
    ) -> Engine:
        """Return an engine of ``largest`` turns at once over a pool of ``pages``.

        ``around`` may wrap what computes.
        """
        setting = self.setting
        known = Surroundings(
            prefill_seconds=OnlinePrefillCost(), capacity=pages * setting.page, tenants={}
        )
        policy = make_policy("fcfs", known)
        cache = PageCache(pages, setting.page, policy.retention.score)
        config = SchedulerConfig(
            token_budget=setting.budget, max_seqs=largest, newcomer_share=NEWCOMER_SHARE
        )
        attention = self.attention(model.config, pages)
        if self.device.type == "cuda":
            warm_up(model, attention)
        backend = around(self.backend(model, attention, largest))
        return Engine(Scheduler(cache, policy, config), backend, overlap=True, preempt=True)

    def median(self, round_: Callable[[], float]) -> float:
        """Return the median of so many rounds, after one that does not count."""
        round_()
        return statistics.median(round_() for _ in range(self.setting.rounds))

    def wait(self) -> None:
        """Wait until the device is done."""
        wait_for(self.device)
