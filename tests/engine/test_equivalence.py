"""What a turn answers does not depend on how it was served.

Real scheduler, real pages, real model (tiny, fp32). The reference computes every token from its
whole prefix: in one slice, on fresh pages, alone. Pages start as NaN, so that a read of what was
never written shows. The examples are fixed, so a tie between two tokens cannot come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.bench.policies import ORACLES
from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.draft import make_drafter
from agentrt.engine.grammar import Grammar
from agentrt.engine.kernels import choose_kernels, make_attention, prepare
from agentrt.engine.kv import PageCache
from agentrt.engine.masks import GrammarTurn, MaskWorker
from agentrt.engine.matcher import GrammarCompiler
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.sampling import TurnSampling, draw_tokens
from agentrt.engine.tokens import Tokenizer
from agentrt.scheduling.plan import TurnFinished, TurnRequest
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tokens import TokenList
from tests.scheduling.driver import POLICIES

VOCAB = 512
MAX_STEPS = 3000
GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, top_k=50, seed=11)
PENALISED = SamplingParams(
    temperature=1.2, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2, seed=-5
)

LETTERS = replace(GREEDY, grammar=Grammar.regex("([a-z]+ )*[a-z]{4}"))
OBJECT = replace(SAMPLED, grammar=Grammar.json_object())
PENALISED_DIGITS = replace(PENALISED, grammar=Grammar.regex("[0-9]+(, [0-9]+)*!"))
GRAMMARS = [LETTERS, OBJECT, PENALISED_DIGITS]

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def words(seed, count):
    return tuple(np.random.default_rng(seed).integers(4, VOCAB, count).tolist())


PATHS = ["torch", pytest.param("native", marks=pytest.mark.requires_native)]


@pytest.fixture(scope="module", params=PATHS)
def kernels(request):
    return choose_kernels(request.param, "cpu")


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request, kernels, tiny_models):
    model = load_model(tiny_models(request.param))
    prepare(model, kernels)
    model.kernels = kernels
    return model


@pytest.fixture(scope="module")
def compiler(tiny_models):
    tokenizer = Tokenizer.from_directory(tiny_models("qwen3"))
    return GrammarCompiler(tokenizer, tokenizer.eos_ids)


@pytest.fixture(scope="module")
def reference(model, compiler):
    """``reference(prompt, params, count)``: each token from its whole prefix, alone."""
    worker = MaskWorker(VOCAB)

    @cache
    def prefix_logits(prefix):
        attention = TorchPagedAttention(model.config, len(prefix), 1, model.dtype)
        step = attention.plan(BatchLayout((SliceLayout(0, len(prefix), range(len(prefix))),)))
        tokens, positions = torch.tensor(prefix), torch.arange(len(prefix))
        return model.forward(tokens, positions, step, torch.tensor([len(prefix) - 1]))

    def answer(prompt, params, count):
        grammar = params.grammar and GrammarTurn(compiler.compile(params.grammar), worker)
        state = TurnSampling.start(
            params, params.seed or 0, torch.tensor(prompt), VOCAB, grammar=grammar
        )
        output = []
        while len(output) < count and not (grammar and grammar.done):
            if grammar:
                grammar.look_ahead()
            prefix = (*prompt, *output)
            [draw] = draw_tokens(prefix_logits(prefix), [state], [len(prefix)], [None])
            state.note(draw.token)
            output.append(draw.token)
        return output

    return answer


@dataclass
class Ask:
    """A turn of a scenario. ``follow``: a second turn continues from its output."""

    prompt: tuple[int, ...]
    count: int
    params: SamplingParams = GREEDY
    at: int = 0
    cancel_at: int | None = None
    forced: tuple[int, ...] | None = None
    follow: bool = False


@dataclass
class Serving:
    """How it is served."""

    pages: int
    page_size: int = 4
    budget: int = 16
    max_seqs: int = 4
    policy: str = "program-fcfs"
    draft: str = "off"


@dataclass
class Served:
    """What came out, by turn id."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    stats: dict[str, object] = field(default_factory=dict)
    asks: dict[str, Ask] = field(default_factory=dict)
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0


class Noisy:
    """A drafter that knows the answers and gets a third of the tokens wrong, by place."""

    def __init__(self, reference, asks):
        self.reference, self.asks = reference, asks

    def propose(self, asks, decodes, budget):
        drafts = {}
        for turn_id, tokens, limit in asks:
            ask = self.asks[turn_id]
            truth = ask.forced or self.reference(ask.prompt, ask.params, ask.count)
            place = len(tokens) - len(ask.prompt)
            count = min(limit, budget, 1 + place % 5)
            right = truth[place : place + count]
            drafts[turn_id] = [
                (token + 1) % VOCAB if (place + i) % 3 == 2 else token
                for i, token in enumerate(right)
            ]
            budget -= len(drafts[turn_id])
        return drafts

    def observe(self, plan, result, seconds):
        pass

    def closed(self, turn_id):
        pass


class Driver:
    """The engine's cycle without its thread: one step after the other, checked after each."""

    def __init__(self, model, serving, reference=None, compiler=None):
        policy = make_policy(serving.policy)
        retention = policy.retention
        kv = PageCache(serving.pages, serving.page_size, retention.score, rescore=retention.rescore)
        config = SchedulerConfig(token_budget=serving.budget, max_seqs=serving.max_seqs)
        attention = make_attention(
            model.kernels, model.config, serving.pages, serving.page_size, model.dtype
        )
        attention.kv.fill_(float("nan"))
        self.backend = TorchBackend(model, attention)
        self.served = Served()
        self.compiler = compiler
        if serving.draft == "noisy":
            drafter = Noisy(reference, self.served.asks)
        else:
            drafter = make_drafter(serving.draft, self.backend.foresee)
        self.scheduler = Scheduler(kv, policy, config, drafter=drafter)
        self.now = 0.0

    def submit(self, turn_id, ask):
        self.served.tokens[turn_id], self.served.asks[turn_id] = [], ask
        grammar = ask.params.grammar and self.compiler.compile(ask.params.grammar)
        self.backend.open(turn_id, ask.prompt, ask.params, ask.forced, grammar=grammar)
        program = turn_id.split("+")[0]
        tokens = TokenList(ask.prompt)
        self.scheduler.submit(TurnRequest(turn_id, program, tokens, ask.count), self.now)

    def run(self, asks):
        waiting = {f"turn{i}": ask for i, ask in enumerate(asks)}
        for step in range(MAX_STEPS):
            for turn_id, ask in list(waiting.items()):
                if ask.at <= step:
                    self.submit(turn_id, waiting.pop(turn_id))
            for turn_id, ask in self.served.asks.items():
                if ask.cancel_at == step:
                    self.scheduler.cancel(turn_id, self.now)
            if not self.step() and not waiting:
                figures = self.scheduler.statistics()
                self.served.preemptions, self.served.steps = figures.preemptions, figures.steps
                self.served.drafted = figures.drafted_tokens
                self.served.accepted = figures.accepted_tokens
                assert len(self.served.stats) == len(self.served.asks)
                assert self.backend.open_turns == 0
                return self.served
        raise AssertionError("the scenario does not end")

    def step(self):
        plan = self.scheduler.plan(self.now)
        self.now += 1.0
        events = []
        if plan.slices:
            result = self.backend.run(plan)
            for turn_id, sample in result.samples.items():
                assert sample.finish != "failed", getattr(sample, "error", None)
                self.served.tokens[turn_id] += sample.tokens
            events += self.scheduler.commit(plan, result, self.now)
        for event in [*events, *self.scheduler.take_events()]:
            if isinstance(event, TurnFinished):
                self.finish(event.stats)
        self.scheduler.check_integrity()
        return bool(plan.slices)

    def finish(self, stats):
        self.backend.close(stats.turn_id)
        self.served.stats[stats.turn_id] = stats
        ask = self.served.asks[stats.turn_id]
        if ask.follow and stats.reason in ("stop", "length"):
            prompt = (*ask.prompt, *self.served.tokens[stats.turn_id], 5, 6, 7)
            self.submit(f"{stats.turn_id}+", replace(ask, prompt=prompt, follow=False))


def check(served, reference):
    for turn_id, ask in served.asks.items():
        wanted = list(ask.forced or reference(ask.prompt, ask.params, ask.count))
        got = served.tokens[turn_id]
        if served.stats[turn_id].reason == "cancelled":
            assert got == wanted[: len(got)]
        else:
            assert got == wanted


PROMPTS = [words(1, 40), words(1, 40)[:20] + words(2, 13), words(3, 7), words(4, 1), words(1, 26)]

asks = st.builds(
    Ask,
    prompt=st.sampled_from(PROMPTS),
    count=st.integers(1, 9),
    params=st.sampled_from([GREEDY, GREEDY, SAMPLED, PENALISED, *GRAMMARS]),
    at=st.integers(0, 8),
    cancel_at=st.none() | st.none() | st.integers(0, 25),
    follow=st.booleans(),
)
# Oracles need the future and exist in simulations only.
LIVE = [spec for spec in POLICIES if spec not in ORACLES]
# 40 + 9 tokens, answered, plus 3 + 9 of a follow-up: 61 tokens at most, the smallest pool's size.
servings = st.builds(
    lambda size, extra, budget, seqs, policy, draft: Serving(
        -(-61 // size) + extra, size, max(budget, seqs + 1), seqs, policy, draft
    ),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([0, 1, 3, 40]),
    st.sampled_from([2, 5, 16, 100]),
    st.integers(1, 4),
    st.sampled_from(LIVE),
    st.sampled_from(["off", "ngram", "noisy"]),
)


class TestAnyServing:
    @few
    @given(st.lists(asks, min_size=1, max_size=5), servings)
    def test_every_turn_answers_as_if_it_were_alone(
        self, model, reference, compiler, turns, serving
    ):
        check(Driver(model, serving, reference, compiler).run(turns), reference)

    @few
    @given(st.lists(asks, min_size=1, max_size=3), servings, st.integers(0, 99))
    def test_forced_output_comes_out_beside_others(
        self, model, reference, compiler, turns, serving, seed
    ):
        recorded = words(seed, 9)
        forced = Ask(PROMPTS[0], 9, SAMPLED, forced=recorded, follow=True)
        driver = Driver(model, serving, reference, compiler)
        served = driver.run([*turns, replace(forced, count=len(recorded))])
        check(served, reference)
        last = f"turn{len(turns)}"
        assert served.stats[last].reason == "stop"


class TestOneThingAtATime:
    """Each cause on its own, with proof that it took place."""

    def test_batching(self, model, reference):
        turns = [Ask(prompt, 12, params) for prompt in PROMPTS for params in (GREEDY, SAMPLED)]
        served = Driver(model, Serving(400, max_seqs=10, budget=300)).run(turns)
        assert all(stats.queue_seconds == 0 for stats in served.stats.values())
        check(served, reference)

    @pytest.mark.parametrize("budget", [2, 3, 7, 16, 39, 40, 41])
    def test_chunked_prefill(self, model, reference, budget):
        served = Driver(model, Serving(60, budget=budget, max_seqs=1)).run([Ask(PROMPTS[0], 6)])
        assert served.stats["turn0"].prefill_seconds == -(-40 // budget)
        check(served, reference)

    @pytest.mark.parametrize("page_size", [1, 4, 16])
    def test_prefix_hits(self, model, reference, page_size):
        turns = [Ask(PROMPTS[0], 6, follow=True), Ask(PROMPTS[4], 6, SAMPLED, at=20)]
        served = Driver(model, Serving(200, page_size)).run(turns)
        assert served.stats["turn0+"].cached_tokens >= 40 // page_size * page_size
        assert served.stats["turn1"].cached_tokens == 25 // page_size * page_size
        check(served, reference)

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED, PENALISED])
    def test_preemption(self, model, reference, params):
        # Two turns of 40 + 24 tokens in 24 pages of 4: they start together, one has to give way.
        turns = [Ask(words(seed, 40), 24, params) for seed in (21, 22)]
        served = Driver(model, Serving(24, budget=100)).run(turns)
        assert served.preemptions >= 1
        assert sum(stats.preemptions for stats in served.stats.values()) == served.preemptions
        check(served, reference)

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED, PENALISED, *GRAMMARS])
    def test_drafting(self, model, reference, compiler, params):
        turns = [Ask(PROMPTS[i], 14, params) for i in (2, 3)]
        plain = Driver(model, Serving(400), reference, compiler).run(turns)
        drafted = Driver(model, Serving(400, draft="noisy"), reference, compiler).run(turns)
        assert drafted.tokens == plain.tokens
        assert drafted.drafted > drafted.accepted > 0
        assert drafted.steps < plain.steps
        check(drafted, reference)

    @pytest.mark.parametrize("page_size", [1, 4])
    def test_drafting_where_pages_are_short(self, model, reference, page_size):
        turns = [Ask(words(seed, 40), 24) for seed in (21, 22)]
        serving = Serving(96 // page_size, page_size, budget=100, draft="noisy")
        served = Driver(model, serving, reference).run(turns)
        assert served.preemptions >= 1
        assert served.accepted > 0
        check(served, reference)

    def test_guesses_from_the_prompt_save_steps(self, model, reference):
        recorded = PROMPTS[0][5:30]
        turn = Ask((*PROMPTS[0], *PROMPTS[0][:5]), len(recorded), forced=recorded)
        served = Driver(model, Serving(60, draft="ngram", budget=100)).run([turn])
        assert served.tokens["turn0"] == list(recorded)
        assert served.steps < len(recorded) // 2
        check(served, reference)

    def test_cancelling_others(self, model, reference):
        turns = [Ask(PROMPTS[0], 20)] + [
            Ask(PROMPTS[i % 5], 20, SAMPLED, at=i, cancel_at=3 * i + 2) for i in range(1, 6)
        ]
        served = Driver(model, Serving(30)).run(turns)
        reasons = [served.stats[f"turn{i}"].reason for i in range(6)]
        assert reasons[0] == "length"
        assert reasons.count("cancelled") >= 3
        check(served, reference)

    def test_eviction(self, model, reference):
        turns = [Ask(words(seed, 40), 4, at=12 * seed) for seed in range(4)]
        served = Driver(model, Serving(16)).run([*turns, replace(turns[0], at=60)])
        assert served.stats["turn4"].cached_tokens < 40
        check(served, reference)

    def test_the_same_seed_gives_the_same_and_another_seed_another_output(self, model):
        turns = [Ask(PROMPTS[2], 12, replace(SAMPLED, seed=seed)) for seed in (1, 2, 1)]
        served = Driver(model, Serving(60)).run(turns)
        assert served.tokens["turn0"] == served.tokens["turn2"] != served.tokens["turn1"]


class Recorder:
    """A decoder that keeps the logits of every row, by call."""

    def __init__(self, model, kernels):
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.model = model
        self.kernels = kernels
        self.rows = []

    def forward(self, tokens, positions, attention, rows):
        logits = self.model.forward(tokens, positions, attention, rows)
        self.rows += [(int(positions[row]), logits[i]) for i, row in enumerate(rows.tolist())]
        return logits


@pytest.mark.parametrize("arch", ["qwen3", "llama", "mistral", "qwen2"])
def test_bf16_logits_stay_within_the_rounding_of_bf16_itself(arch, kernels, tiny_models):
    """The bound is measured: the error of plain bf16, whole prefix in one slice, against fp32."""
    directory = tiny_models(arch, torch_dtype="bfloat16")
    half = load_model(directory)
    assert half.dtype == torch.bfloat16
    prompt, recorded = words(7, 70), words(8, 20)
    sequence = (*prompt, *recorded)

    def plain(model):
        attention = TorchPagedAttention(model.config, len(sequence), 1, model.dtype)
        step = attention.plan(BatchLayout((SliceLayout(0, len(sequence), range(len(sequence))),)))
        rows = torch.arange(len(sequence))
        return model.forward(torch.tensor(sequence), rows, step, rows)

    exact = plain(load_model(directory, dtype=torch.float32))
    error = plain(half) - exact
    most, usual = error.abs().max(), error.square().mean(dim=1).sqrt().max()
    assert 0 < usual < 0.1 * exact.std()

    prepare(half, kernels)
    recorder = Recorder(half, kernels)
    turn = Ask(prompt, len(recorded), forced=recorded)
    noise = [Ask(words(90 + i, 30), 20, at=3 * i) for i in range(3)]
    # The turn comes last, so its rows are known by their positions: nobody else reaches 70.
    served = Driver(recorder, Serving(60, budget=9)).run([*noise, turn])
    assert served.tokens["turn3"] == list(recorded)
    seen = [(position, row) for position, row in recorder.rows if position >= len(prompt) - 1]
    assert {position for position, _ in seen} == set(range(len(prompt) - 1, len(sequence) - 1))
    for position, row in seen:
        assert (row - exact[position]).abs().max() <= 1.5 * most
        assert (row - exact[position]).square().mean().sqrt() <= 1.25 * usual
