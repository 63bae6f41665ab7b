"""Long prefill steps that are given up for a turn that has come meanwhile."""

from __future__ import annotations

import pytest
import torch

from agentrt.engine.attention.preempt import AHEAD, Probe, StepAbandoned, preemptible
from agentrt.engine.backend import StepHandle
from agentrt.engine.fake import fake_output
from agentrt.engine.faults import misfit
from agentrt.engine.kv import PageCache
from agentrt.engine.model.weights import load_model
from agentrt.engine.runner import LONG
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import ConfigError
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tokens import TokenList
from tests.engine.faults import FaultyBackend
from tests.engine.test_device_equivalence import DEVICES, GREEDY, Ask, Served, Serving, words
from tests.engine.test_faults import PAGE, VOCAB, Cycles


class Giving(FaultyBackend):
    """Gives up steps of ten tokens and more that are unwanted once ``meanwhile`` was called."""

    def __init__(self):
        super().__init__(PAGE, VOCAB)
        self.meanwhile = lambda: None
        self.plans = []

    def give_up_when(self, unwanted):
        self.unwanted = unwanted

    def launch(self, plan: StepPlan) -> StepHandle:
        self.plans.append(plan)
        if plan.tokens < 10:
            return super().launch(plan)
        self.meanwhile()
        return StepHandle(plan) if self.unwanted() else super().launch(plan)

    def wait(self, handle: StepHandle) -> StepResult:
        if type(handle) is StepHandle:
            return StepResult(abandoned=True)
        return super().wait(handle)


def cycles(**config):
    made = Cycles(
        backend=Giving(), preempt=True, pages=60, token_budget=16, newcomer_share=0.75, **config
    )
    return made, made.backend


class TestGivingUp:
    def test_the_newcomer_has_its_first_token_after_one_step(self):
        made, backend = cycles()
        long = made.submit([7] * 100, 3, "long")
        made.cycle()
        newcomer = []
        backend.meanwhile = lambda: newcomer or newcomer.append(made.submit([1, 2], 3, "short"))
        made.cycle()
        assert backend.plans[-1].tokens == 16
        assert made.loop.statistics().abandoned_steps == 1
        assert newcomer[0].tokens == []
        made.cycle()
        # The chunk goes on where it was, with a quarter of the step, so that this is a short one.
        slices = [(piece.turn_id, piece.start, piece.count) for piece in backend.plans[-1].slices]
        assert slices == [("t0", 16, 4), ("t1", 0, 2)]
        assert newcomer[0].tokens == fake_output([1, 2], 1, VOCAB)
        made.drain()
        made.check()
        assert long.finish == "length"

    def test_no_step_after_one_that_was_given_up_is_given_up(self):
        made, backend = cycles()
        long = made.submit([7] * 100, 3, "long")
        backend.meanwhile = lambda: made.submit([9] * 11, 1, f"p{len(made.turns)}")
        while long.finish is None:
            made.cycle()
        backend.meanwhile = lambda: None
        made.drain()
        made.check()
        figures = made.loop.statistics()
        assert 1 < figures.abandoned_steps <= figures.steps / 2

    def test_it_is_not_given_up_for_who_would_wait_anyway(self):
        made, backend = cycles(max_seqs=1)
        made.submit([7] * 40, 3, "long")
        made.submit([1], 1, "waiting")
        made.cycle()
        backend.meanwhile = lambda: made.submit([2], 1, "newcomer")
        made.cycle()
        assert made.loop.statistics().abandoned_steps == 0
        backend.meanwhile = lambda: None
        made.drain()
        made.check()

    def test_it_is_not_given_up_for_who_is_no_shorter(self):
        made, backend = cycles()
        made.submit([7] * 100, 3, "long")
        made.cycle()
        backend.meanwhile = lambda: made.submit([2] * 13, 1, "newcomer")
        made.cycle()
        backend.meanwhile = lambda: made.submit([2], 1, "behind it")
        made.cycle()
        assert made.loop.statistics().abandoned_steps == 0
        backend.meanwhile = lambda: None
        made.drain()
        made.check()

    def test_of_a_prompt_only_what_is_not_cached_counts(self):
        made, backend = cycles()
        made.submit([7] * 20, 3, "agent")
        made.drain()
        made.submit([9] * 60, 3, "long")
        made.cycle()
        backend.meanwhile = lambda: made.submit([7] * 16 + [3] * 12, 1, "agent")
        made.cycle()
        assert made.loop.statistics().abandoned_steps == 1
        backend.meanwhile = lambda: None
        made.drain()
        made.check()

    def test_cancelled_in_a_step_that_is_given_up(self):
        made, backend = cycles()
        long = made.submit([7] * 60, 3, "long")
        made.cycle()

        def meanwhile():
            made.submit([1], 1, "b")
            made.scheduler.cancel("t0", made.now)

        backend.meanwhile = meanwhile
        made.cycle()
        backend.meanwhile = lambda: None
        made.drain()
        assert (long.tokens, long.finish) == ([], "cancelled")

    def test_a_result_cannot_be_both(self):
        plan = StepPlan((SeqSlice("a", 0, 3, [0], True),))
        assert misfit(plan, StepResult(abandoned=True)) is None
        assert "given up" in misfit(plan, StepResult({"a": Sample((1,))}, abandoned=True))


class TestNewcomerShare:
    def make(self, share, **config):
        policy = make_policy("fcfs")
        kv = PageCache(60, PAGE, policy.retention.score)
        config = {"token_budget": 16, "max_seqs": 4} | config
        return Scheduler(kv, policy, SchedulerConfig(newcomer_share=share, **config))

    def second_plan(self, scheduler):
        scheduler.submit(TurnRequest("long", "a", TokenList([1] * 100), 3), 0.0)
        scheduler.commit(scheduler.plan(0.0), StepResult(), 1.0)
        scheduler.submit(TurnRequest("short", "b", TokenList([2] * 5), 3), 1.0)
        return [(piece.turn_id, piece.count) for piece in scheduler.plan(1.0).slices]

    def test_what_has_started_leaves_a_share_to_who_waits(self):
        assert self.second_plan(self.make(0.0)) == [("long", 16)]
        assert self.second_plan(self.make(0.5)) == [("long", 8), ("short", 5)]
        assert self.second_plan(self.make(0.3125)) == [("long", 11), ("short", 5)]

    def test_none_is_left_where_nobody_can_start_or_it_would_not_suffice(self):
        assert self.second_plan(self.make(0.5, max_seqs=1)) == [("long", 16)]
        assert self.second_plan(self.make(0.3)) == [("long", 16)]

    def test_the_share_is_a_share(self):
        with pytest.raises(ConfigError, match=r"newcomer_share is 1\.5"):
            SchedulerConfig(newcomer_share=1.5)


class Step:
    def __init__(self):
        self.layers = []

    def attend(self, layer, q, k, v):
        self.layers.append(layer)
        return q


def test_a_step_ends_before_the_layer_at_which_it_is_unwanted():
    step, answers = Step(), iter([False] * 3 + [True])
    asking = preemptible(step, Probe(lambda: next(answers), torch.device("cpu")))
    x = torch.zeros(1)
    for layer in range(3):
        assert asking.attend(layer, x, x, x) is x
    with pytest.raises(StepAbandoned):
        asking.attend(3, x, x, x)
    assert step.layers == [0, 1, 2]


@pytest.mark.requires_cuda
def test_the_host_is_a_few_layers_ahead_of_the_device_at_most():
    device = torch.device("cuda")
    probe, x = Probe(lambda: False, device), torch.zeros(1, device=device)
    done = []
    for _ in range(8):
        probe.ask()
        torch.cuda._sleep(20_000_000)
        event = torch.cuda.Event()
        event.record()
        done.append(event)
        assert all(event.query() for event in done[: -AHEAD - 1])
    assert x.item() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ["qwen3", "mistral"])
@pytest.mark.parametrize("mode", [("off", "off"), ("on", "on")])
@pytest.mark.parametrize("period", [2, 3, 7])
def test_answers_are_the_same_however_often_steps_are_given_up(
    tiny_models, arch, device, mode, period
):
    """Every ``period``-th question gives a step up, of the first twenty."""
    model = load_model(tiny_models(arch), device=device)
    tokenizer = Tokenizer.from_directory(tiny_models("qwen3"))
    asks = [Ask(words(i, 2 * LONG + 20 * i), GREEDY) for i in range(3)]
    serving = Serving(pages=400, budget=LONG + 30)
    wanted = Served(model, tokenizer, ("off", "off"), serving).answers(asks)
    served = Served(model, tokenizer, mode, serving)
    asked = []

    def unwanted():
        asked.append(len(asked) % period == period - 1 and len(asked) < 20)
        return asked[-1]

    served.backend.give_up_when(unwanted)
    assert served.answers(asks) == wanted
    assert served.engine.statistics().abandoned_steps == sum(asked) >= 1
