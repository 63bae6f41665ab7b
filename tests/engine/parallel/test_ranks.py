"""An engine over two processes: answers, faults, ends. One launch serves most of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import replace

import anyio
import psutil
import pytest
import torch

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.kv import PageCache
from agentrt.engine.model.weights import load_model
from agentrt.engine.parallel.group import TorchGroup
from agentrt.engine.parallel.leader import LedModel, ParallelBackend, led_pages
from agentrt.engine.parallel.rank import Pages, RankSettings
from agentrt.engine.parallel.ranks import Bounds, Ranks
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.errors import BackendUnavailable, EngineFault
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

pytestmark = pytest.mark.anyio

PAGE, PAGES = 4, 48
PROMPT = tuple(range(5, 45))
BOUNDS = Bounds(meet=60, load=60, step=20)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def scheduler():
    policy = make_policy("fixed-ttl=30")
    config = SchedulerConfig(token_budget=24, max_seqs=3)
    return Scheduler(PageCache(PAGES, PAGE, policy.retention.score), policy, config)


class Two:
    """Two ranks of a model, the second a process, and engines over them."""

    def __init__(self, directory, bounds=BOUNDS):
        settings = RankSettings(str(directory), "float32", "cpu", 0, 2, "", 0.0)
        self.ranks = Ranks(settings, ["cpu", "cpu"], TorchGroup(0, 2, torch.device("cpu")), bounds)
        try:
            self.ranks.launch()
            self.own = load_model(directory, dtype=torch.float32, group=self.ranks.group)
            self.ranks.loaded()
        except BaseException:
            self.ranks.close()
            raise
        self.model = LedModel(self.own, self.ranks)

    def pages(self):
        own = self.own
        return led_pages(
            self.ranks,
            Pages(PAGES, PAGE),
            lambda: TorchPagedAttention(own.config, PAGES, PAGE, own.dtype),
        )

    def engine(self):
        inner = TorchBackend(self.model, self.pages(), rebuild=self.pages)
        return Engine(scheduler(), ParallelBackend(inner, self.ranks), check=True)


@contextlib.contextmanager
def two(directory, bounds=BOUNDS):
    made = Two(directory, bounds)
    try:
        yield made
    finally:
        pids = [] if made.ranks._crew is None else made.ranks.crew.pids
        made.ranks.close()
        assert not any(map(psutil.pid_exists, pids))
        assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def directory(tiny_models):
    return tiny_models("qwen3")


@pytest.fixture(scope="module")
def pair(directory):
    with two(directory) as made:
        yield made


class Asker:
    def __init__(self, engine):
        self.engine, self.turns = engine, 0

    async def submit(self, prompt=PROMPT, tokens=8):
        self.turns += 1
        sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        return await self.engine.submit(
            EngineRequest(f"t{self.turns}", f"p{self.turns}", prompt, sampling)
        )

    async def answer(self, stream):
        with anyio.fail_after(60):
            chunks = [chunk async for chunk in stream]
        return [t for chunk in chunks for t in chunk.tokens], chunks[-1].finish, stream.error

    async def ask(self, *args, **named):
        return await self.answer(await self.submit(*args, **named))


async def conversation(engine):
    """A prompt in chunks, a cached prefix, then three turns that do not fit the pool together."""
    asker = Asker(engine)
    got = [await asker.ask(), await asker.ask((*PROMPT, 7, 8, 9))]
    streams = [await asker.submit((*range(i, i + 50),), 40) for i in (100, 200, 300)]
    return got + [await asker.answer(stream) for stream in streams]


async def test_whole_turns_answer_as_on_one_rank(pair, directory):
    alone = load_model(directory, dtype=torch.float32)
    attention = TorchPagedAttention(alone.config, PAGES, PAGE, alone.dtype)
    async with Engine(scheduler(), TorchBackend(alone, attention), check=True) as engine:
        wanted = await conversation(engine)
    async with pair.engine() as engine:
        assert await conversation(engine) == wanted
        figures = engine.statistics().scheduler
        assert figures.preemptions > 0
        assert figures.cached_tokens >= 40 // PAGE * PAGE
        assert engine.statistics().restarts == 0


async def test_a_step_that_breaks_on_rank_0_alone_is_a_fault_that_the_engine_survives(pair):
    async with pair.engine() as engine:
        asker = Asker(engine)
        wanted = await asker.ask()
        before = pair.ranks.crew.pids

        def broken(index, layer, x, *rest):
            del pair.own._attend
            raise RuntimeError("the kernel is bad")

        pair.own._attend = broken
        tokens, finish, error = await asker.ask(PROMPT[::-1])
        assert (tokens, finish) == ([], "failed")
        assert "the kernel is bad" in error
        assert await asker.ask() == wanted
        assert engine.statistics().restarts == 1
        assert pair.ranks.crew.pids != before  # it was out of step, waiting for a sum


async def test_bad_logits_keep_the_ranks(pair):
    async with pair.engine() as engine:
        asker = Asker(engine)
        wanted = await asker.ask()
        before = pair.ranks.crew.pids
        forward = pair.own.forward

        def spoiled(*args):
            del pair.own.forward
            return forward(*args) * float("nan")

        pair.own.forward = spoiled
        assert (await asker.ask(PROMPT[:20][::-1]))[1] == "failed"
        assert await asker.ask() == wanted
        assert engine.statistics().restarts == 1
        assert pair.ranks.crew.pids == before


async def test_a_rank_that_is_killed_in_a_step_fails_the_turn_and_is_replaced(pair):
    async with pair.engine() as engine:
        asker = Asker(engine)
        wanted = await asker.ask()
        stream = await asker.submit(PROMPT[::-1], 90)
        first = await anext(aiter(stream))
        assert first.tokens
        [pid] = pair.ranks.crew.pids
        os.kill(pid, signal.SIGKILL)
        _, finish, error = await asker.answer(stream)
        assert finish == "failed"
        assert "Rank 1 was ended by SIGKILL" in error
        assert await asker.ask() == wanted
        assert not psutil.pid_exists(pid)


async def test_a_rank_that_hangs_fails_the_turn_in_bounded_time(pair, monkeypatch):
    monkeypatch.setattr(pair.ranks, "_bounds", replace(BOUNDS, step=1.5))
    async with pair.engine() as engine:
        asker = Asker(engine)
        wanted = await asker.ask()
        [pid] = pair.ranks.crew.pids
        os.kill(pid, signal.SIGSTOP)
        _, finish, error = await asker.ask(PROMPT[::-1])
        monkeypatch.undo()
        assert finish == "failed"
        assert "one of them hangs" in error
        assert await asker.ask() == wanted
        assert not psutil.pid_exists(pid)


def test_a_rank_ends_once_rank_0_is_gone_whatever_it_does(pair):
    """As after SIGKILL of rank 0: its end of the socket closes, and nobody is told."""
    with pair.ranks.crew._members[0].channel._end as end:
        pair.ranks.crew.kill = lambda: None  # nobody is left who would
        end.shutdown(socket.SHUT_RDWR)
        assert pair.ranks.crew._members[0].process.wait(30) == 1
    del pair.ranks.crew.kill
    pair.ranks.end()


def test_a_rank_that_cannot_load_says_why(tmp_path):
    settings = RankSettings(str(tmp_path), "float32", "cpu", 0, 2, "", 0.0)
    ranks = Ranks(settings, ["cpu", "cpu"], TorchGroup(0, 2, torch.device("cpu")), BOUNDS)
    try:
        ranks.launch()
        with pytest.raises(EngineFault, match=r"Rank 1 failed: ModelError: .*config.json"):
            ranks.loaded()
    finally:
        ranks.close()
    with pytest.raises(BackendUnavailable, match="have been ended"):
        ranks.make_pages(Pages(PAGES, PAGE))
