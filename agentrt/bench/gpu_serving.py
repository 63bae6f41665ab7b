"""The GPU rows that go through a whole engine: its thread, its scheduler, its pages."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import anyio
import anyio.lowlevel

from agentrt.bench.gpu_lab import Lab
from agentrt.bench.gpu_plan import Figure
from agentrt.bench.gpu_profile import Kernels, idle_share
from agentrt.bench.gpu_roofline import ideal_seconds
from agentrt.bench.gpu_workload import Request, requests
from agentrt.engine.backend import StepHandle, TurnBackend
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.observed import ForwardingBackend
from agentrt.engine.params import SamplingParams
from agentrt.errors import InternalError
from agentrt.scheduling.plan import StepPlan

__all__ = ["first_token", "idle", "throughput"]


def throughput(lab: Lab, model: str, profile: Kernels | None = None) -> Figure:
    """Measure output tokens a second over all requests at once, beside the ideal."""
    setting = lab.setting
    config = lab.model(model).config
    asked = requests(setting.requests, *setting.lengths, vocabulary=config.vocab_size)
    seconds = anyio.run(_all, lab, model, asked)
    produced = sum(one.output for one in asked)
    bound = produced / ideal_seconds(config, asked, lab.rates)
    if profile is not None:
        few = [Request(one.prompt, min(one.output, setting.steps)) for one in asked]
        with profile.record():
            anyio.run(_all, lab, model, few)
    prompts = sum(one.input for one in asked)
    note = f"{prompts:,} tokens in, {produced:,} out in {seconds:.1f} s"
    return Figure(produced / seconds, bound, note, {"seconds": seconds})


async def _all(lab: Lab, model: str, asked: Sequence[Request]) -> float:
    """Serve all requests at once; return the seconds until the last one ended."""
    pages = sum(lab.pages(one.input + one.output) for one in asked) + len(asked)
    async with _engine(lab, model, pages, len(asked)) as engine:
        await _answer(engine, "warm", asked[0].prompt, 2)
        start = time.perf_counter()
        async with anyio.create_task_group() as group:
            for index, one in enumerate(asked):
                # Temperature as in the published runs: greedy would be a little less work.
                group.start_soon(_answer, engine, str(index), one.prompt, one.output, 0.6)
        return time.perf_counter() - start


@asynccontextmanager
async def _engine(
    lab: Lab,
    model: str,
    pages: int,
    largest: int,
    around: Callable[[TurnBackend], TurnBackend] = lambda backend: backend,
) -> AsyncIterator[Engine]:
    async with lab.engine(lab.model(model), pages, largest, around) as engine:
        yield engine
    lab.wait()


async def _answer(
    engine: Engine, name: str, prompt: Sequence[int], output: int, temperature: float = 0.0
) -> float:
    """Serve one turn; return the seconds until its first token.

    Raises:
        InternalError: not all of its tokens came.
    """
    sampling = SamplingParams(temperature=temperature, max_tokens=output, ignore_eos=True, seed=0)
    start, first, count = time.perf_counter(), 0.0, 0
    stream = await engine.submit(EngineRequest(name, name, prompt, sampling))
    async for chunk in stream:
        if not count and chunk.tokens:
            first = time.perf_counter() - start
        count += len(chunk.tokens)
    if count != output:
        raise InternalError(f"Turn {name} gave {count} of {output} tokens: {stream.error}.")
    return first


class _Recorded(ForwardingBackend):
    """Records, in the engine's own thread, what the device does in some of the steps.

    Args:
        inner: what computes.
        batch: sequences of the steps that count.
        skip: so many of them go by first.
        count: so many are recorded.
        kernels: what records.
    """

    def __init__(
        self, inner: TurnBackend, batch: int, skip: int, count: int, kernels: Kernels
    ) -> None:
        super().__init__(inner)
        self._batch = batch
        self._first, self._last = skip, skip + count
        self._kernels = kernels
        self._steps = 0
        self._recording = ExitStack()

    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin a step. See ``TurnBackend.launch``."""
        if len(plan.slices) == plan.tokens == self._batch:
            if self._steps == self._first:
                self._recording.enter_context(self._kernels.record())
            elif self._steps == self._last:
                self._recording.close()
            self._steps += 1
        return super().launch(plan)


def idle(lab: Lab, profile: Kernels | None = None) -> Figure:
    """Measure the share of time in which the device does nothing while a full batch decodes."""
    kernels = profile or Kernels(lab.setting.device)
    anyio.run(_decode_recorded, lab, kernels)
    return Figure(idle_share(kernels.spans), None, f"{len(kernels.spans)} kernels")


async def _decode_recorded(lab: Lab, kernels: Kernels) -> None:
    setting = lab.setting
    batch, steps = setting.batches[-1], setting.steps
    output = 3 * steps + batch  # they begin one after another, as prompts are computed
    prompts = [[1 + index % 50, *[2] * (setting.short - 1)] for index in range(batch)]
    pages = batch * (lab.pages(setting.short + output) + 1)

    def recorded(backend: TurnBackend) -> TurnBackend:
        return _Recorded(backend, batch, steps // 2, steps, kernels)

    serving = _engine(lab, setting.big, pages, batch, recorded)
    async with serving as engine, anyio.create_task_group() as group:
        for index, prompt in enumerate(prompts):
            group.start_soon(_answer, engine, str(index), prompt, output)


def first_token(lab: Lab, profile: Kernels | None = None) -> Figure:
    """Measure a short turn's first token while a long prompt is computed, over its time alone."""
    alone, beside = anyio.run(_first_tokens, lab)
    note = f"{1e3 * alone:.1f} ms alone, {1e3 * beside:.1f} ms beside"
    return Figure(beside / alone, None, note, {"alone_seconds": alone, "beside_seconds": beside})


async def _first_tokens(lab: Lab) -> tuple[float, float]:
    setting = lab.setting
    rounds = 2 * setting.rounds + 1
    vocabulary = lab.model(setting.big).config.vocab_size
    pages = lab.pages(setting.long + 1) + rounds * 3 * lab.pages(setting.short + 2) + 8
    async with _engine(lab, setting.big, pages, 4) as engine:
        names = iter(range(10_000))

        async def short() -> float:
            number = next(names)
            prompt = [(7 * number + place) % vocabulary for place in range(setting.short)]
            return await _answer(engine, f"short {number}", prompt, 1)

        await short()
        alone = [await short() for _ in range(rounds)]
        beside: list[float] = []
        prompt = [place % vocabulary for place in range(setting.long)]
        async with anyio.create_task_group() as group:
            before = engine.statistics().steps
            group.start_soon(_answer, engine, "long", prompt, 1)
            while engine.statistics().steps == before:
                await anyio.lowlevel.checkpoint()
            while engine.statistics().turns and len(beside) < rounds:
                beside.append(await short())
    if not beside:
        raise InternalError("The long prompt was computed before a short turn could come.")
    return statistics.median(alone), statistics.median(beside)
