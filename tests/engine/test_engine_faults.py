"""Faults injected into a real model's steps, through the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio
import pytest
import torch

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.faults import RestartLimits
from agentrt.engine.kv import PageCache
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.errors import BackendUnavailable
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

pytestmark = pytest.mark.anyio

PAGE, PAGES, VOCAB = 4, 64, 512
PROMPT = tuple(range(5, 25))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


class Faulty:
    """A model that spoils the logits of chosen calls; a call is a step or a proof after a fault."""

    def __init__(self, model):
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        self.model = model
        self.faults: Iterator[Callable | None] = iter(())

    def forward(self, tokens, positions, attention, rows):
        fault = next(self.faults, None)
        if fault is bad_kernel:
            attention = Broken(attention)
        logits = self.model.forward(tokens, positions, attention, rows)
        return fault(logits) if fault is not None else logits


class Broken:
    """An attention step whose kernel raises in the second layer, having written the first."""

    def __init__(self, step):
        self.step = step

    def attend(self, layer, q, k, v):
        if layer == 1:
            raise RuntimeError("the kernel is bad")
        return self.step.attend(layer, q, k, v)


def bad_kernel(logits):
    raise AssertionError("the kernel was to raise")


def out_of_memory(logits):
    raise torch.OutOfMemoryError("no memory is left")


def nan(logits):
    return torch.full_like(logits, torch.nan)


def nan_for_first(logits):
    logits[0] = torch.nan
    return logits


def misshapen(logits):
    return logits[:, :-1]


def a_row_too_few(logits):
    return logits[1:]


FAULTS = {
    bad_kernel: "RuntimeError: the kernel is bad",
    out_of_memory: "OutOfMemoryError: no memory is left",
    nan: "no usable logits at position 20",
    misshapen: "logits of shape [1, 511], not [1, 512]",
    a_row_too_few: "logits of shape [0, 512], not [1, 512]",
}


class Served:
    """An engine over a faulty model; counts the pools that it makes."""

    def __init__(self, model, **limits):
        self.model = Faulty(model)
        self.pools = 0
        policy = make_policy("fixed-ttl=30")
        self.scheduler = Scheduler(
            PageCache(PAGES, PAGE, policy.retention.score),
            policy,
            SchedulerConfig(token_budget=64, max_seqs=2),
        )
        self.backend = TorchBackend(self.model, self.make(), rebuild=self.make)
        self.engine = Engine(
            self.scheduler, self.backend, check=True, limits=RestartLimits(**limits)
        )
        self.turns = 0

    def make(self):
        self.pools += 1
        return TorchPagedAttention(self.model.config, PAGES, PAGE, self.model.dtype)

    async def submit(self, prompt=PROMPT, tokens=6, program="p"):
        self.turns += 1
        sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        return await self.engine.submit(
            EngineRequest(f"turn-{self.turns}", program, prompt, sampling)
        )

    async def answer(self, stream=None):
        """Return the tokens, the end and the error of a turn."""
        stream = stream or await self.submit()
        with anyio.fail_after(60):
            chunks = [chunk async for chunk in stream]
        return [t for chunk in chunks for t in chunk.tokens], chunks[-1].finish, stream.error


@pytest.fixture(scope="module")
def model(tiny_models):
    return load_model(tiny_models("qwen3"))


async def settled(served):
    with anyio.fail_after(60):
        while served.engine.statistics().state == "restarting":
            await anyio.sleep(0.001)


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_turn_fails_and_the_next_one_succeeds(model, fault):
    served = Served(model)
    async with served.engine as engine:
        wanted = await served.answer()
        assert wanted[1:] == ("length", None)
        served.model.faults = iter([fault])
        other = PROMPT[::-1]  # nothing of it is cached
        tokens, finish, error = await served.answer(await served.submit(other))
        assert (tokens, finish) == ([], "failed")
        assert FAULTS[fault] in error
        assert await served.answer() == wanted
        figures = engine.statistics()
        assert (figures.restarts, figures.failed_steps, figures.state) == (1, 1, "running")
        assert figures.fault
        served.scheduler.check_integrity()
    assert served.pools == 2
    assert served.backend.open_turns == 0


async def test_turns_that_wait_survive(model):
    served = Served(model)
    async with served.engine:
        wanted = [await served.answer(await served.submit(PROMPT[i:])) for i in range(4)]
        served.model.faults = iter([None, None, bad_kernel])
        streams = [await served.submit(PROMPT[i:], program=f"p{i}") for i in range(4)]
        got = [await served.answer(stream) for stream in streams]
        await settled(served)
    failed = [index for index, (_, finish, _) in enumerate(got) if finish == "failed"]
    assert 1 <= len(failed) <= 2
    for index, answer in enumerate(got):
        if index in failed:
            assert answer[0] == wanted[index][0][: len(answer[0])]
        else:
            assert answer == wanted[index]


async def test_bad_logits_of_one_of_two_turns_fail_that_one(model):
    served = Served(model)
    async with served.engine as engine:
        wanted = [await served.answer(await served.submit(PROMPT[i:], 40)) for i in (0, 1)]
        first = await served.submit(PROMPT, 40, "a")
        second = await served.submit(PROMPT[1:], 40, "b")

        def once_both_run(logits):
            if len(logits) < 2:
                return logits
            served.model.faults = iter(())
            return nan_for_first(logits)

        served.model.faults = iter([once_both_run] * 80)
        got = [await served.answer(first), await served.answer(second)]
        assert engine.statistics().restarts == 0
    finishes = [finish for _, finish, _ in got]
    assert sorted(finishes) == ["failed", "length"]
    assert got[finishes.index("length")] == wanted[finishes.index("length")]


async def test_a_model_that_stays_broken_stops_the_engine_with_the_reason(model):
    served = Served(model, restarts=3)
    async with served.engine as engine:
        served.model.faults = iter([nan] * 10)
        _, finish, _ = await served.answer()
        assert finish == "failed"
        with anyio.fail_after(60):
            while engine.statistics().state != "broken":
                await anyio.sleep(0.001)
        with pytest.raises(BackendUnavailable, match="gives no usable logits for a single token"):
            await served.submit()
        assert engine.statistics().restarts == 0


async def test_pages_that_cannot_be_made_anew_stop_the_engine_with_the_reason(model):
    served = Served(model, restarts=2)

    def no_room():
        raise torch.OutOfMemoryError("the pool does not fit")

    served.backend._rebuild = no_room
    async with served.engine as engine:
        served.model.faults = iter([out_of_memory])
        await served.answer()
        with anyio.fail_after(60):
            while engine.statistics().state != "broken":
                await anyio.sleep(0.001)
        with pytest.raises(BackendUnavailable, match="the pool does not fit"):
            await served.submit()
