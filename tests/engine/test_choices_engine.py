"""Closed sets of answers through the whole engine: real scheduler and pages, model and fake."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.kv import PageCache
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import InvalidRequest
from agentrt.scheduling.plan import StepPlan
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

PAGE = 4
VOCAB = 512
IDS = count()
YES_NO = ("yes", "no")
NESTED = ("a", "a🙂", "a🙂名", "a🙂é", "b")

few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# Two letters make prefixes likely; the others take more than a token each.
texts = st.text("ab é名🙂\n", min_size=1, max_size=6)
choice_sets = st.lists(texts, min_size=1, max_size=6, unique=True).map(tuple)
samplings = st.builds(
    lambda temperature, top_p, penalty, seed, choices: SamplingParams(
        max_tokens=40,
        temperature=temperature,
        top_p=top_p,
        frequency_penalty=penalty,
        seed=seed,
        choices=choices,
    ),
    st.sampled_from([0, 0.8, 3.0]),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 99),
    choice_sets | st.none(),
)
asks = st.lists(
    st.tuples(st.sampled_from(["Fix it.", "ls -la", "a", "ls -la /tmp | wc"]), samplings),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module", params=["torch", "fake"])
def make_backend(request, tiny_model_dir):
    """Return ``make(pages)`` for the tiny model and for the backend without one."""
    if request.param == "fake":
        return lambda pages: FakeTurnBackend(PAGE, VOCAB)
    model = load_model(tiny_model_dir)

    def make(pages):
        attention = TorchPagedAttention(model.config, pages, PAGE, model.dtype)
        return TorchBackend(model, attention)

    return make


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return Tokenizer.from_directory(tiny_model_dir)


@dataclass
class Answer:
    tokens: list[int]
    text: str
    finish: str
    chunks: list[object]


class Gathering(Scheduler):
    """Plans nothing before ``turns`` turns wait, so that all of them overlap."""

    turns = 0

    def plan(self, now, horizon=1):
        if self.statistics().waiting < self.turns:
            return StepPlan(())
        self.turns = 0
        return super().plan(now, horizon)


class Endless:
    """A tokenizer of a model that has no end token."""

    def __init__(self, tokenizer):
        self.encode, self.decode, self.stream = (
            tokenizer.encode,
            tokenizer.decode,
            tokenizer.stream,
        )
        self.eos_ids = frozenset()


def serve(backend, tokenizer, asks, *, pages, at_once=True, budget=64):
    """Run ``asks`` (text, sampling) through an engine; return the answers and the preemptions.

    With ``at_once`` no step runs before all of them are submitted.
    """
    answers = {}

    async def one(engine, index, text, sampling):
        prompt = tokenizer.encode(text)
        request = EngineRequest(f"turn-{next(IDS)}", f"p{index}", prompt, sampling)
        stream = await engine.submit(request)
        chunks = [chunk async for chunk in stream]
        assert stream.error is None
        answers[index] = Answer(
            [token for chunk in chunks for token in chunk.tokens],
            "".join(chunk.text for chunk in chunks),
            chunks[-1].finish,
            chunks,
        )

    async def main():
        policy = make_policy("program-fcfs")
        scheduler = Gathering(
            PageCache(pages, PAGE, policy.retention.score),
            policy,
            SchedulerConfig(token_budget=budget, max_seqs=4),
        )
        scheduler.turns = len(asks) if at_once else 0
        with anyio.fail_after(60):
            async with Engine(scheduler, backend, tokenizer=tokenizer, check=True) as engine:
                if at_once:
                    async with anyio.create_task_group() as group:
                        for index, ask in enumerate(asks):
                            group.start_soon(one, engine, index, *ask)
                else:
                    for index, ask in enumerate(asks):
                        await one(engine, index, *ask)
                return engine.statistics().scheduler.preemptions

    preemptions = anyio.run(main)
    assert backend.open_turns == 0
    return [answers[index] for index in range(len(asks))], preemptions


def serve_one(backend, tokenizer, sampling, text="Fix it."):
    [answer], _ = serve(backend, tokenizer, [(text, sampling)], pages=60, at_once=False)
    return answer


@few
@given(asks)
def test_the_output_is_one_of_the_set_and_the_same_in_any_company(make_backend, tokenizer, turns):
    alone, _ = serve(make_backend(200), tokenizer, turns, pages=200, at_once=False)
    # 16 + 40 tokens at most a turn, so 15 pages of 4 hold just one that is full; 5 tokens a step.
    crowd, _ = serve(make_backend(15), tokenizer, turns, pages=15, budget=5)
    for (_, sampling), answer, other in zip(turns, alone, crowd, strict=True):
        assert answer.tokens == other.tokens
        assert (answer.text, answer.finish) == (other.text, other.finish)
        if sampling.choices is not None:
            assert answer.text in sampling.choices
            assert answer.finish == "stop"


def test_a_preempted_turn_goes_on_where_it_was(make_backend, tokenizer):
    # Answers that take some 30 steps and differ at their end only, in a pool that holds one of two.
    choices = tuple(f"{'xyz' * 9}{digit}!" for digit in range(10))
    turns = [
        ("some words that fill pages " + name, SamplingParams(seed=5, choices=choices))
        for name in ("a", "b", "c")
    ]
    alone, none = serve(make_backend(200), tokenizer, turns, pages=200, at_once=False)
    crowd, some = serve(make_backend(20), tokenizer, turns, pages=20)
    assert (none, some > 0) == (0, True)
    assert [answer.text for answer in alone] == [answer.text for answer in crowd]
    assert all(answer.text in choices for answer in crowd)


def test_every_choice_is_drawn_now_and_then(make_backend, tokenizer):
    turns = [
        (str(index), SamplingParams(temperature=1.0, seed=index, choices=NESTED))
        for index in range(80)
    ]
    answers, _ = serve(make_backend(400), tokenizer, turns, pages=400)
    assert {answer.text for answer in answers} == set(NESTED)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_end_token_ends_a_choice_that_another_begins_with(make_backend, tokenizer, ignore_eos):
    turns = [
        (str(index), SamplingParams(seed=index, choices=NESTED, ignore_eos=ignore_eos))
        for index in range(40)
    ]
    answers, _ = serve(make_backend(400), tokenizer, turns, pages=400)
    for answer in answers:
        ended = answer.tokens[-1] in tokenizer.eos_ids
        assert ended == (answer.text in ("a", "a🙂"))
        assert tokenizer.encode(answer.text) == answer.tokens[: len(answer.tokens) - ended]
        assert answer.finish == "stop"


def test_without_an_end_token_no_choice_may_begin_with_another(make_backend, tokenizer):
    endless = Endless(tokenizer)
    with pytest.raises(InvalidRequest, match="no end token"):
        serve_one(make_backend(60), endless, SamplingParams(choices=NESTED))
    assert serve_one(make_backend(60), endless, SamplingParams(choices=YES_NO)).text in YES_NO


def test_max_tokens_must_have_room_for_every_choice(make_backend, tokenizer):
    choices = ("no", "name: 名前 🙂")
    longest = max(len(tokenizer.encode(text)) for text in choices)
    with pytest.raises(InvalidRequest, match=f"takes {longest} tokens") as caught:
        serve_one(
            make_backend(60), tokenizer, SamplingParams(max_tokens=longest - 1, choices=choices)
        )
    assert f"at least {longest}" in caught.value.remedy
    answer = serve_one(
        make_backend(60), tokenizer, SamplingParams(max_tokens=longest, choices=choices[1:])
    )
    assert (answer.text, answer.finish, len(answer.tokens)) == (choices[1], "stop", longest)


def test_a_set_of_one_comes_out(make_backend, tokenizer):
    sampling = SamplingParams(temperature=0, choices=("only this",), logprobs=1)
    answer = serve_one(make_backend(60), tokenizer, sampling)
    assert (answer.text, answer.finish) == ("only this", "stop")


def test_log_probabilities_are_the_models_own(tokenizer, tiny_model_dir):
    model = load_model(tiny_model_dir)

    def ask(**fields):
        attention = TorchPagedAttention(model.config, 60, PAGE, model.dtype)
        sampling = SamplingParams(max_tokens=9, temperature=0, logprobs=2, **fields)
        return serve_one(TorchBackend(model, attention), tokenizer, sampling)

    free, closed = ask(), ask(choices=YES_NO)
    mine = [each for chunk in closed.chunks for each in chunk.logprobs]
    theirs = [each for chunk in free.chunks for each in chunk.logprobs]
    assert [each.token for each in mine] == closed.tokens
    assert mine[0].top == theirs[0].top
    assert mine[0].logprob < mine[0].top[0][1]


@pytest.mark.parametrize("text", ["<|im_end|>", "yes<|im_end|>"])
def test_names_of_special_tokens_are_no_choices(make_backend, tokenizer, text):
    assert tokenizer.encode("<|im_end|>") == [min(tokenizer.eos_ids)]
    with pytest.raises(InvalidRequest, match="im_end"):
        serve_one(make_backend(60), tokenizer, SamplingParams(choices=("yes", text)))


class TestRefusals:
    pytestmark = pytest.mark.anyio

    async def submit(self, tokenizer, **fields):
        policy = make_policy("fcfs")
        scheduler = Scheduler(PageCache(16, PAGE, policy.retention.score), policy)
        async with Engine(scheduler, FakeTurnBackend(PAGE, 50), tokenizer=tokenizer) as engine:
            await engine.submit(
                EngineRequest("t", "p", [1], SamplingParams(choices=YES_NO), **fields)
            )

    async def test_choices_need_a_tokenizer(self):
        with pytest.raises(InvalidRequest, match="without a tokenizer"):
            await self.submit(None)

    async def test_choices_and_forced_output_exclude_each_other(self, tokenizer):
        with pytest.raises(InvalidRequest, match="forced"):
            await self.submit(tokenizer, forced=[1, 2])

    async def test_tokens_outside_the_models_vocabulary_are_refused(self, tokenizer):
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await self.submit(tokenizer)
