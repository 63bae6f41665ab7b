"""Ten thousand random operations under a pool of 64 pages: nothing is lost and nothing goes wrong.

Submit, cancel, preempt, offload, prefetch, extend, revise, seal, end: in any order, with copies
that take their time, overtake each other and fail now and then.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.weights import load_model
from agentrt.engine.runner import TorchBackend
from agentrt.engine.tiers.host import HostTier
from agentrt.scheduling.plan import ToolEvent
from tests.engine.tiered import Cycle, fake_cycle, right

PROGRAMS = 8
LONGEST = 120
"""Tokens of a prompt: with its output it fits the pool of 256 many times less than twice."""


class Chaos:
    """Does one random thing after the other to a cycle and remembers how often which."""

    def __init__(self, cycle, seed, *, vocab=50, output=12):
        self.cycle, self.draw = cycle, random.Random(seed)
        self.vocab, self.output = vocab, output
        self.histories = {}
        self.seen = Counter()
        self.number = self.done = 0
        shared = self.words(17)
        self.starts = {f"p{i}": [*shared, *self.words(5)] for i in range(PROGRAMS)}

    def words(self, count):
        return [self.draw.randrange(self.vocab) for _ in range(count)]

    def name(self, kind):
        self.number += 1
        return f"{kind}{self.number}"

    def prompt(self, program):
        """What a program says next: its last answered turn and more, or a fresh start."""
        past = self.histories.get(program, self.starts[program])
        if len(past) > LONGEST - 30:
            past = self.starts[program]
        return [*past, *self.words(self.draw.randint(1, 25))]

    @property
    def crowd(self):
        """Turns at a time: now few, so that there is room, now many, so that there is none."""
        return 12 if self.done // 400 % 2 else 3

    def one(self):
        self.done += 1
        what, weight = zip(*self.ACTIONS, strict=True)
        name = self.draw.choices(what, weight)[0]
        if getattr(self, name)():
            self.seen[name] += 1
        self.cycle.check()

    ACTIONS = (
        ("step", 10),
        ("submit", 2),
        ("cancel", 0.5),
        ("open", 1),
        ("extend", 3),
        ("revise", 1),
        ("seal", 1),
        ("give_up", 0.3),
        ("tool", 0.5),
        ("end_context", 0.1),
        ("end_program", 0.15),
        ("rest", 0.4),
    )

    def step(self):
        ran = self.cycle.step()
        for turn_id, turn in list(self.cycle.turns.items()):
            if turn.reason == "length":
                self.histories[turn.program] = [*turn.prompt, *turn.tokens]
            if turn.reason is not None:
                assert self.right(turn), turn_id
                self.seen[turn.reason] += 1
                del self.cycle.turns[turn_id]
        return ran

    def right(self, turn):
        return right(turn, self.vocab)

    def program(self):
        return self.draw.choice(list(self.starts))

    def submit(self):
        if len(self.cycle.turns) >= self.crowd:
            return False
        program = self.program()
        count = self.draw.randint(1, self.output)
        self.cycle.submit(self.name("t"), program, self.prompt(program), count)
        return True

    def cancel(self):
        turns = list(self.cycle.turns)
        return bool(turns) and self.cycle.cancel(self.draw.choice(turns))

    def open(self):
        if len(self.cycle.opened) >= 4:
            return False
        program = self.program()
        self.cycle.open(self.name("o"), program, self.prompt(program))
        return True

    def some_open(self):
        return self.draw.choice(list(self.cycle.opened)) if self.cycle.opened else None

    def extend(self):
        turn_id = self.some_open()
        if turn_id is None or len(self.cycle.opened[turn_id][1]) > LONGEST:
            return False
        length = len(self.cycle.opened[turn_id][1])
        self.cycle.revise(turn_id, length, self.words(self.draw.randint(1, 20)))
        return True

    def revise(self):
        turn_id = self.some_open()
        if turn_id is None:
            return False
        length = len(self.cycle.opened[turn_id][1])
        self.cycle.revise(
            turn_id, self.draw.randint(0, length), self.words(self.draw.randint(1, 9))
        )
        return True

    def seal(self):
        """Hand in what was opened, now and then with another end than was said."""
        turn_id = self.some_open()
        if turn_id is None or len(self.cycle.turns) >= self.crowd:
            return False
        program, prompt = self.cycle.opened[turn_id]
        if self.draw.random() < 0.3:
            prompt = [*prompt[: self.draw.randint(1, len(prompt))], *self.words(3)]
        count = self.draw.randint(1, self.output)
        self.cycle.submit(self.name("t"), program, prompt, count, opened=turn_id)
        return True

    def give_up(self):
        turn_id = self.some_open()
        if turn_id is not None:
            self.cycle.close(turn_id)
        return turn_id is not None

    def tool(self):
        kind = self.draw.choice(["started", "ended", "frozen", "blocked", "killed"])
        event = ToolEvent(self.program(), "main", kind, "bash")
        self.cycle.scheduler.tool_event(event, self.cycle.now)
        return True

    def end_context(self):
        self.cycle.scheduler.end_context(self.program(), "main", self.cycle.now)
        return True

    def end_program(self):
        program = self.program()
        self.cycle.end_program(program)
        self.histories.pop(program, None)
        return True

    def rest(self):
        """Time passes: pins expire, prefetches fall due."""
        self.cycle.now += self.draw.choice([0.5, 3.0, 10.0])
        return True

    def finish(self):
        """End everything; every page must be free or cached then."""
        self.cycle.drain()
        for program in self.starts:
            self.cycle.end_program(program)
        for turn_id in list(self.cycle.opened):
            self.cycle.close(turn_id)
        self.cycle.drain()
        assert all(self.right(turn) for turn in self.cycle.turns.values())
        assert self.cycle.kv.available() == self.cycle.kv.total
        assert self.cycle.host.available() == self.cycle.host.total
        self.cycle.check()


@pytest.mark.parametrize("policy", ["agentrt", "fixed-ttl=5", "fcfs"])
def test_ten_thousand_operations(policy):
    cycle = fake_cycle(1, policy)
    chaos = Chaos(cycle, 2, output=60)
    for _ in range(10_000):
        chaos.one()
    figures = cycle.scheduler.statistics()
    chaos.finish()
    done = chaos.seen
    assert sum(done[name] for name, _ in chaos.ACTIONS) >= 8000
    assert min(done[name] for name, _ in chaos.ACTIONS) >= 30, done
    assert done["length"] > 300
    assert done["cancelled"] > 20
    assert figures.preemptions > 50
    assert figures.stored_tokens > 1000
    assert figures.loaded_tokens > 100
    assert figures.streamed_tokens > 1000
    assert figures.fetched_tokens > 100
    assert figures.prefetched_tokens > 0 or policy != "agentrt"
    assert cycle.backend.open_turns == 0


class TorchLink:
    """A real host tier in step with a cycle. ``late`` transfers begin some looks after they were
    planned; until it is copied, a page that is to be loaded is NaN."""

    def __init__(self, attention, host, draw):
        self.pool = attention.kv
        self.tier = HostTier(attention.page_tensors, host)
        self.tier.start(lambda: None)
        self.draw = draw
        self.waiting, self.count = [], 0

    @property
    def under_way(self):
        return self.count > 0

    def begin(self, transfers):
        for transfer in transfers:
            self.count += 1
            if transfer.kind == "load":
                self.pool[:, :, list(transfer.pages)] = float("nan")
            self.waiting.append([self.draw.randint(0, 4), transfer])

    def take_over(self):
        for entry in self.waiting:
            entry[0] -= 1
        self.tier.begin([one for left, one in self.waiting if left < 0])
        self.waiting = [entry for entry in self.waiting if entry[0] >= 0]
        over = self.tier.take_over()
        self.count -= len(over.done) + len(over.failed)
        assert not over.failed
        return over.done, over.failed


@pytest.fixture(scope="module")
def model(tiny_models):
    return load_model(tiny_models("qwen3"))


@pytest.fixture(scope="module")
def undisturbed(model):
    attention = TorchPagedAttention(model.config, 64, 4, model.dtype)
    backend = TorchBackend(model, attention)

    class NoLink:
        under_way = ()

        def begin(self, transfers):
            pass

        def take_over(self):
            return (), ()

    def answer(prompt, count):
        cycle = Cycle(
            backend,
            lambda _: NoLink(),
            "fcfs",
            pages=64,
            page=4,
            host=1,
            config={"token_budget": 300, "max_seqs": 1},
            reload=1e9,
        )
        cycle.submit("alone", "alone", prompt, count)
        cycle.drain()
        return cycle.turns["alone"].tokens

    return answer


class TestRealModel:
    """The same on a tiny fp32 model: greedy output equals that of an undisturbed engine."""

    VOCAB = 512

    @pytest.mark.parametrize("policy", ["agentrt", "fcfs"])
    def test_operations_change_no_token(self, model, undisturbed, policy):
        draw = random.Random(5)
        attention = TorchPagedAttention(model.config, 64, 4, model.dtype)
        attention.kv.fill_(float("nan"))
        cycle = Cycle(
            TorchBackend(model, attention),
            lambda _: TorchLink(attention, 96, draw),
            policy,
            pages=64,
            page=4,
            host=96,
            config={"token_budget": 24, "max_seqs": 6, "max_wait": 20.0},
        )
        chaos = Chaos(cycle, 7, vocab=self.VOCAB, output=8)
        chaos.right = lambda turn: self.agrees(turn, undisturbed)
        with torch.inference_mode():
            for _ in range(300):
                chaos.one()
            figures = cycle.scheduler.statistics()
            chaos.finish()
        cycle.link.tier.close()
        assert chaos.seen["length"] > 10
        assert figures.loaded_tokens > 0
        assert figures.streamed_tokens > 100
        assert cycle.link.tier.statistics().failed == 0

    @staticmethod
    def agrees(turn, undisturbed):
        wanted = undisturbed(turn.prompt, turn.count)
        return turn.tokens == (wanted if turn.reason == "length" else wanted[: len(turn.tokens)])
