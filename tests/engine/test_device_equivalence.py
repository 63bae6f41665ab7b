"""Recorded steps and steps launched early say what all others say, through the engine's thread.

Real scheduler, pages and model (tiny, fp32, seeded). Pages start as NaN. On CUDA the same, with
CUDA graphs, where there is a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import anyio
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.gpu.choose import choose_steps, make_backend
from agentrt.engine.gpu.runner import DeviceBackend
from agentrt.engine.grammar import Grammar
from agentrt.engine.kv import PageCache
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.tokens import Tokenizer
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

PAGE = 4
GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=30)
DRAWN = SamplingParams(temperature=0.9, seed=7, ignore_eos=True, max_tokens=30)
CUT = replace(DRAWN, top_p=0.9, top_k=60, seed=8)
PENALISED = replace(DRAWN, frequency_penalty=0.4, seed=9)
LOGPROBS = replace(GREEDY, logprobs=2)
LETTERS = replace(GREEDY, grammar=Grammar.regex("[a-z]{20}"))
MODES = [("on", "off"), ("off", "on"), ("on", "on")]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def model(tiny_models, device):
    return load_model(tiny_models("qwen3"), device=device)


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return Tokenizer.from_directory(tiny_models("qwen3"))


@dataclass(frozen=True)
class Ask:
    """A turn; ``cancel_after`` so many chunks its reader has enough."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    cancel_after: int | None = None
    forced: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Serving:
    pages: int = 200
    budget: int = 64
    max_seqs: int = 8
    policy: str = "fcfs"


@dataclass
class Answer:
    tokens: list[int]
    text: str
    finish: str
    error: str | None


class Served:
    """An engine in one of the modes, for a few turns at once."""

    def __init__(self, model, tokenizer, mode, serving, wrap=None):
        policy = make_policy(serving.policy)
        retention = policy.retention
        kv = PageCache(serving.pages, PAGE, retention.score, rescore=retention.rescore)
        config = SchedulerConfig(token_budget=serving.budget, max_seqs=serving.max_seqs)
        self.scheduler = Scheduler(kv, policy, config)

        def new_attention():
            shape = (model.config, serving.pages, PAGE, model.dtype, model.device)
            attention = TorchPagedAttention(*shape)
            attention.kv.fill_(float("nan"))
            return attention

        choose = partial(choose_steps, *mode, model.device.type)
        self.backend, chosen = make_backend(model, new_attention, choose, serving.max_seqs)
        self.engine = Engine(
            self.scheduler,
            self.backend,
            tokenizer=tokenizer,
            eos_ids=tokenizer.eos_ids,
            check=True,
            overlap=chosen.overlap,
        )

    def answers(self, asks):
        return anyio.run(self._answers, asks)

    async def _answers(self, asks):
        answers = {}

        async def one(index, ask):
            request = EngineRequest(
                f"t{index}", f"p{index}", ask.prompt, ask.sampling, forced=ask.forced
            )
            async with await self.engine.submit(request) as stream:
                chunks = []
                async for chunk in stream:
                    chunks.append(chunk)
                    if len(chunks) == ask.cancel_after:
                        self.engine.cancel(stream.turn_id)
                answers[index] = Answer(
                    [token for chunk in chunks for token in chunk.tokens],
                    "".join(chunk.text for chunk in chunks),
                    chunks[-1].finish,
                    stream.error,
                )

        with anyio.fail_after(90):
            async with self.engine, anyio.create_task_group() as group:
                for index, ask in enumerate(asks):
                    group.start_soon(one, index, ask)
        assert self.backend.open_turns == 0
        return [answers[index] for index in range(len(asks))]


def words(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(4, 512, (count,), generator=generator).tolist())


ASKS = [
    Ask(words(1, 21), GREEDY),
    Ask(words(2, 13), DRAWN),
    Ask(words(3, 5), CUT),
    Ask(words(1, 21)[:12] + words(4, 6), replace(GREEDY, max_tokens=17)),
    Ask(words(5, 9), DRAWN, forced=words(6, 25)),
]


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    """``alone(ask)``: what a turn answers by itself, on the ordinary way."""
    known = {}

    def answer(ask):
        ask = replace(ask, cancel_after=None)
        if ask not in known:
            [known[ask]] = Served(model, tokenizer, ("off", "off"), Serving()).answers([ask])
        return known[ask]

    return answer


def with_stops(asks, alone):
    """Have turns stop in the middle of what they would say: at a text, and at a token."""
    stopped = []
    for index, ask in enumerate(asks):
        whole = alone(ask)
        middle = len(whole.text) // 2
        if index % 2:
            stop = {"stop": (whole.text[middle : middle + 2],)}
        else:
            stop = {"stop_token_ids": (whole.tokens[len(whole.tokens) // 2],)}
        stopped.append(replace(ask, sampling=replace(ask.sampling, **stop)))
    return stopped


def check(answers, asks, alone):
    for got, ask in zip(answers, asks, strict=True):
        wanted = alone(ask)
        assert got.error is None
        if got.finish == "cancelled":
            assert ask.cancel_after is not None
            assert got.tokens == wanted.tokens[: len(got.tokens)]
        else:
            assert (got.tokens, got.text, got.finish) == (
                wanted.tokens,
                wanted.text,
                wanted.finish,
            )


SERVINGS = {
    "roomy": Serving(),
    "chunked": Serving(budget=9),
    "few pages": Serving(pages=26),
    "few seats": Serving(max_seqs=2),
    "continuum": Serving(policy="continuum", pages=40),
}


@pytest.mark.parametrize("mode", MODES, ids="graphs {0[0]} overlap {0[1]}".format)
class TestTheSameAnswers:
    @pytest.mark.parametrize("name", SERVINGS)
    def test_however_they_are_served(self, model, tokenizer, alone, mode, name):
        served = Served(model, tokenizer, mode, SERVINGS[name])
        check(served.answers(ASKS), ASKS, alone)
        figures = served.engine.statistics()
        assert served.backend.graph_steps > 20
        assert (figures.overlapped_steps > 10) == (mode[1] == "on")
        assert (figures.scheduler.preemptions > 0) == (name == "few pages")

    def test_with_stops_and_readers_that_leave(self, model, tokenizer, alone, mode):
        asks = with_stops(ASKS[:4], alone)
        asks += [replace(ASKS[0], cancel_after=5), replace(ASKS[1], cancel_after=9)]
        served = Served(model, tokenizer, mode, Serving(max_seqs=4))
        answers = served.answers(asks)
        check(answers, asks, alone)
        assert [answer.finish for answer in answers[:4]] == ["stop"] * 4
        assert all(len(answer.tokens) < 30 for answer in answers[:4])

    def test_beside_turns_that_need_the_host(self, model, tokenizer, alone, mode):
        short = [replace(p, max_tokens=8) for p in (PENALISED, LOGPROBS, LETTERS)]
        asks = [*ASKS[:2], *(Ask(words(20 + i, 6), p) for i, p in enumerate(short))]
        served = Served(model, tokenizer, mode, Serving())
        check(served.answers(asks), asks, alone)
        # Once those have ended, the others go on from graphs.
        assert served.backend.graph_steps > 10

    @pytest.mark.parametrize("bad", [3, 15])
    @pytest.mark.parametrize("how", ["launch", "wait", "logits"])
    def test_after_a_fault_in_any_step(self, model, tokenizer, alone, mode, bad, how):
        served = Served(model, tokenizer, mode, Serving(max_seqs=2))
        fail(served.backend, how, bad)
        answers = served.answers(ASKS)
        failed = [answer for answer in answers if answer.finish == "failed"]
        assert 1 <= len(failed) <= 2
        for answer, ask in zip(answers, ASKS, strict=True):
            if answer.finish == "failed":
                assert answer.tokens == alone(ask).tokens[: len(answer.tokens)]
                assert "the device is lost" in answer.error or "usable logits" in answer.error
            else:
                assert (answer.tokens, answer.finish) == (alone(ask).tokens, alone(ask).finish)
        assert served.engine.statistics().restarts == 1


def fail(backend, how, bad):
    """Have one step go wrong: it cannot be launched, or be waited for, or its logits are NaN."""
    launch, wait = backend.launch, backend.wait
    launched, waited = iter(range(1000)), iter(range(1000))

    def lost():
        raise RuntimeError("the device is lost")

    def faulty_launch(plan):
        if next(launched) == bad:
            if how == "launch":
                lost()
            if how == "logits":
                backend.attention().kv.fill_(float("nan"))
        return launch(plan)

    def faulty_wait(handle):
        if next(waited) == bad and how == "wait":
            lost()
        return wait(handle)

    backend.launch, backend.wait = faulty_launch, faulty_wait


asks = st.builds(
    Ask,
    prompt=st.sampled_from([ask.prompt for ask in ASKS]),
    sampling=st.builds(
        replace, st.sampled_from([GREEDY, DRAWN, CUT, PENALISED]), max_tokens=st.integers(1, 20)
    ),
    cancel_after=st.none() | st.none() | st.integers(1, 12),
)
servings = st.builds(
    Serving,
    pages=st.sampled_from([12, 20, 100]),
    budget=st.sampled_from([5, 16, 64]),
    max_seqs=st.integers(1, 4),
    policy=st.sampled_from(["fcfs", "program-fcfs", "continuum", "agentrt"]),
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(asks, min_size=1, max_size=4), servings, st.sampled_from(MODES))
def test_any_turns_in_any_serving(model, tokenizer, alone, turns, serving, mode):
    check(Served(model, tokenizer, mode, serving).answers(turns), turns, alone)


@pytest.mark.parametrize("arch", ["llama", "mistral"])
def test_other_models(tiny_models, device, arch, tokenizer):
    model = load_model(tiny_models(arch), device=device)
    asks = ASKS[:3]
    wanted = Served(model, tokenizer, ("off", "off"), Serving()).answers(asks)
    served = Served(model, tokenizer, ("on", "on"), Serving())
    assert served.answers(asks) == wanted
    assert isinstance(served.backend, DeviceBackend)
