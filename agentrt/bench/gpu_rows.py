"""The GPU rows that drive one backend or one kernel: decoding, prefill, attention, reload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from agentrt.bench.gpu_lab import Lab
from agentrt.bench.gpu_plan import Figure
from agentrt.bench.gpu_profile import Kernels
from agentrt.bench.gpu_roofline import decode_seconds, prefill_operations, step_bytes
from agentrt.engine.attention.base import DecodeBuffers, StaticAttention
from agentrt.engine.attention.quantized import kv_bytes_per_token
from agentrt.engine.backend import TurnBackend
from agentrt.engine.params import SamplingParams
from agentrt.engine.tiers.host import HostTier, page_bytes
from agentrt.errors import BackendUnavailable
from agentrt.scheduling.plan import SeqSlice, StepPlan, Transfer

__all__ = ["DecodeCase", "attention_rate", "decode", "prefill", "reload", "step_milliseconds"]


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """Sequences that decode, and what differs from bf16 with all there is."""

    model: str
    batch: int
    quant: str | None = None
    kv_dtype: str = "auto"
    graphs: bool = True
    early: bool = True


class _Decoding:
    """Turns of which the context is taken for granted: pages hold what they hold."""

    def __init__(self, lab: Lab, case: DecodeCase) -> None:
        setting = lab.setting
        model = lab.model(case.model, case.quant)
        room = setting.context + setting.steps * (setting.rounds + 3)
        each = lab.pages(room)
        attention = lab.attention(model.config, case.batch * each, case.kv_dtype)
        self._backend = lab.backend(model, attention, case.batch, graphs=case.graphs)
        self._early = case.early
        self._start = setting.context - 1
        prompt = [1] * setting.context
        asked = SamplingParams(temperature=0.0, max_tokens=room, ignore_eos=True)
        for index in range(case.batch):
            self._backend.open(str(index), prompt, asked)
        # Pages of a sequence lie anywhere, as they do after a while.
        places = torch.randperm(case.batch * each, generator=torch.Generator().manual_seed(0))
        self._tables = places.view(case.batch, each).tolist()

    def _plan(self) -> StepPlan:
        start = self._start
        self._start += 1
        return StepPlan(
            tuple(
                SeqSlice(str(index), start, 1, table, True)
                for index, table in enumerate(self._tables)
            )
        )

    def run(self, steps: int) -> None:
        """Run steps as an engine does: the next one is launched before the last one is read."""
        backend, flying = self._backend, None
        for _ in range(steps):
            plan = self._plan()
            handle = backend.launch(plan)
            if flying is not None:
                backend.wait(flying)
            flying = handle
            if not (self._early and backend.follows(plan)):
                backend.wait(handle)
                flying = None
        if flying is not None:
            backend.wait(flying)


def _decode_seconds(lab: Lab, case: DecodeCase, profile: Kernels | None) -> float:
    decoding, steps = _Decoding(lab, case), lab.setting.steps

    def run() -> float:
        lab.wait()
        start = time.perf_counter()
        decoding.run(steps)
        lab.wait()
        return (time.perf_counter() - start) / steps

    seconds = lab.median(run)
    if profile is not None:
        with profile.record():
            decoding.run(steps)
            lab.wait()
    return seconds


def decode(lab: Lab, case: DecodeCase, profile: Kernels | None = None) -> Figure:
    """Measure tokens a second of a batch, beside what its bytes allow."""
    config = lab.model(case.model, case.quant).config
    seconds = _decode_seconds(lab, case, profile)
    token = kv_bytes_per_token(config, torch.bfloat16, case.kv_dtype)
    read = step_bytes(config, case.batch, lab.setting.context, case.quant, token)
    bound = case.batch * lab.rates.copy / read
    more = {"step_milliseconds": 1e3 * seconds, "bytes": read}
    return Figure(case.batch / seconds, bound, f"{1e3 * seconds:.2f} ms a step", more)


def step_milliseconds(lab: Lab, case: DecodeCase, profile: Kernels | None = None) -> Figure:
    """Measure the milliseconds of a step, beside the least that its bytes allow."""
    config = lab.model(case.model).config
    bound = decode_seconds(config, case.batch, lab.setting.context, lab.rates.copy)
    return Figure(1e3 * _decode_seconds(lab, case, profile), 1e3 * bound, smaller=True)


def attention_rate(lab: Lab, profile: Kernels | None = None) -> Figure:
    """Measure the bytes a second that the decode kernel alone reads of keys and values."""
    setting = lab.setting
    layers = 4  # more than a cache holds
    config = replace(lab.model(setting.big).config, num_layers=layers, windows=(None,) * layers)
    batch, context = setting.kernel_batch, setting.kernel_context
    each = lab.pages(context)
    attention = lab.attention(config, batch * each)
    if not isinstance(attention, StaticAttention):
        raise BackendUnavailable(
            f"{type(attention).__name__} has no decode kernel.",
            remedy="Install Triton 3.6; the log says why it is not used.",
        )
    places = torch.randperm(batch * each, generator=torch.Generator().manual_seed(0))
    buffers = DecodeBuffers(
        torch.full((batch,), context, dtype=torch.int32, device=lab.device),
        places.view(batch, each).to(lab.device, torch.int32),
    )
    step = attention.plan_decode(buffers)
    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    q = torch.randn(batch, heads, dim, device=lab.device).to(setting.dtype)
    k, v = torch.randn(2, batch, kv, dim, device=lab.device).to(setting.dtype).unbind(0)

    def through() -> None:
        for layer in range(layers):
            step.attend(layer, q, k, v)

    seconds = _waited(lab, through)
    if profile is not None:
        with profile.record():
            through()
            lab.wait()
    read = layers * 2 * batch * context * kv * dim * setting.dtype.itemsize
    return Figure(read / seconds / 1e9, lab.rates.copy / 1e9, f"batch {batch}, context {context}")


def _waited(lab: Lab, run: Callable[[], None]) -> float:
    """Return the seconds of a call among several that are waited for together."""
    times = lab.setting.steps

    def round_() -> float:
        lab.wait()
        start = time.perf_counter()
        for _ in range(times):
            run()
        lab.wait()
        return (time.perf_counter() - start) / times

    return lab.median(round_)


class _Prompt:
    """A prompt that is computed in steps of the engine's budget."""

    def __init__(self, lab: Lab, tokens: int) -> None:
        self._lab = lab
        self._tokens = tokens
        model = lab.model(lab.setting.big)
        pages = lab.pages(tokens)
        self.attention = lab.attention(model.config, pages)
        self._backend: TurnBackend = lab.backend(model, self.attention, 1)
        self._table = list(range(pages))
        self._runs = 0

    def seconds(self, chunk: int) -> float:
        """Compute the whole prompt, and wait for its first token."""
        name = str(self._runs)
        self._runs += 1
        asked = SamplingParams(temperature=0.0, max_tokens=1)
        self._backend.open(name, [1] * self._tokens, asked)
        self._lab.wait()
        start = time.perf_counter()
        for first in range(0, self._tokens, chunk):
            count = min(chunk, self._tokens - first)
            last = first + count == self._tokens
            self._backend.run(StepPlan((SeqSlice(name, first, count, self._table, last),)))
        self._lab.wait()
        seconds = time.perf_counter() - start
        self._backend.close(name)
        return seconds


def prefill(lab: Lab, profile: Kernels | None = None) -> Figure:
    """Measure the operations a second of one long prompt in one step."""
    tokens = lab.setting.prefill
    prompt = _Prompt(lab, tokens)
    seconds = lab.median(lambda: prompt.seconds(tokens))
    if profile is not None:
        with profile.record():
            prompt.seconds(tokens)
    work = prefill_operations(lab.model(lab.setting.big).config, tokens)
    note = f"{tokens / seconds:,.0f} tokens/s"
    return Figure(work / seconds / 1e12, lab.rates.matrix / 1e12, note, {"seconds": seconds})


def reload(lab: Lab, profile: Kernels | None = None) -> Figure:
    """Measure how many times faster KV comes back from host memory than it is computed."""
    tokens = lab.setting.long
    prompt = _Prompt(lab, tokens)
    computed = prompt.seconds(lab.setting.budget)
    pool = prompt.attention.page_tensors
    pages = tuple(range(lab.pages(tokens)))
    with _tier(pool, len(pages)) as tier:
        tier.copy_now(Transfer(0, "store", pages, pages))
        load = Transfer(1, "load", pages, pages)

        def once() -> float:
            start = time.perf_counter()
            tier.copy_now(load)
            return time.perf_counter() - start

        seconds = lab.median(once)
        if profile is not None:
            with profile.record():
                once()
    rate = len(pages) * page_bytes(pool) / seconds
    note = f"{computed:.2f} s computed, {1e3 * seconds:.0f} ms reloaded at {rate / 1e9:.1f} GB/s"
    return Figure(computed / seconds, None, note, {"bytes_per_second": rate})


@contextmanager
def _tier(pool: tuple[torch.Tensor, ...], pages: int) -> Iterator[HostTier]:
    tier = HostTier(pool, pages)
    try:
        yield tier
    finally:
        tier.close()
