"""The engine's cycle without its thread, over a pool, a host tier and turns that are opened early.

Every operation is one call; after each the caller may check that nothing was lost. The fake backend
raises where a slice builds on pages that do not hold exactly its own prefix.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from agentrt.engine.fake import FakeTurnBackend, fake_output
from agentrt.engine.kv import PageCache
from agentrt.engine.params import SamplingParams
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.plan import OpenRequest, TurnFinished, TurnRequest
from agentrt.scheduling.policy import lru_score
from agentrt.scheduling.surroundings import Surroundings
from agentrt.scheduling.tokens import TokenList

GREEDY = SamplingParams(temperature=0)


class FakeArchive:
    """Files of pages, by the whole prefix that they belong to; they come and go."""

    def __init__(self, draw):
        self.files, self.draw = {}, draw
        self.link = None

    def names(self, keys):
        return [hash(tuple(keys[: end + 1])) for end in range(len(keys))]

    def found(self, names, start):
        end = start
        while end < len(names) and names[end] in self.files:
            end += 1
        return end

    def evicted(self, keys, pages):
        for name, page in zip(self.names(keys)[-len(pages) :], pages, strict=True):
            self.files[name] = self.link.host[page]
        while len(self.files) > 200:
            del self.files[next(iter(self.files))]


class FakeLink:
    """Copies slots of a :class:`FakeTurnBackend`, each transfer when a random number of looks has
    passed: reads and writes are as late as they can be, and in any order. A few fail."""

    def __init__(self, backend, page, draw, archive, *, slowest=6, failing=0.0):
        self.archive = archive
        archive.link = self
        self.backend, self.page, self.draw = backend, page, draw
        self.slowest, self.failing = slowest, failing
        self.host = {}
        self.under_way = []
        self.begun = {"load": 0, "store": 0, "fetch": 0}

    def begin(self, transfers):
        for transfer in transfers:
            self.begun[transfer.kind] += 1
            # A page that is to be loaded holds nothing that could be taken for its content.
            if transfer.kind == "load":
                for page in transfer.pages:
                    self.set(page, [None] * self.page)
            self.under_way.append([self.draw.randint(0, self.slowest), transfer])

    def take_over(self):
        for entry in self.under_way:
            entry[0] -= 1
        over = [one for left, one in self.under_way if left < 0]
        self.under_way = [entry for entry in self.under_way if entry[0] >= 0]
        self.draw.shuffle(over)
        done, failed = [], []
        for transfer in over:
            good = self.draw.random() >= self.failing
            # A file may have gone since it was found.
            good &= all(name in self.archive.files for name in transfer.names)
            (done if good else failed).append(transfer.ticket)
            if good:
                self.copy(transfer)
        return done, failed

    def copy(self, transfer):
        if transfer.kind == "fetch":
            for name, host in zip(transfer.names, transfer.host_pages, strict=True):
                self.host[host] = self.archive.files[name]
            return
        for page, host in zip(transfer.pages, transfer.host_pages, strict=True):
            if transfer.kind == "store":
                self.host[host] = [
                    self.backend._slots[page * self.page + at] for at in range(self.page)
                ]
            else:
                self.set(page, self.host[host])

    def set(self, page, slots):
        for at, value in enumerate(slots):
            self.backend._slots[page * self.page + at] = value


@dataclass
class Served:
    """A turn: what was asked, what came out."""

    program: str
    prompt: list[int]
    count: int
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None


class Cycle:
    """Scheduler, pages, link and backend; ``now`` moves by hand.

    ``backend`` opens, revises, runs, closes; ``link`` begins transfers, hands back what is over.
    """

    def __init__(
        self, backend, make_link, policy, *, pages, page, host, config, reload=1e-6, archive=None
    ):
        around = Surroundings(
            prefill_seconds=lambda tokens: 0.001 * tokens,
            reload_seconds=lambda tokens: reload * tokens,
            capacity=pages * page,
        )
        made = make_policy(policy, around)
        self.kv = PageCache(pages, page, made.retention.score, rescore=made.retention.rescore)
        evicted = None if archive is None else archive.evicted
        self.host = PageCache(host, page, lru_score, evicted=evicted)
        self.scheduler = Scheduler(
            self.kv, made, SchedulerConfig(**config), host=self.host, archive=archive
        )
        self.backend = backend
        self.link = make_link(backend)
        self.turns: dict[str, Served] = {}
        self.opened: dict[str, tuple[str, list[int]]] = {}
        self.now = 0.0

    def submit(self, turn_id, program, prompt, count, opened=None):
        self.turns[turn_id] = Served(program, list(prompt), count)
        self.backend.open(turn_id, prompt, GREEDY)
        request = TurnRequest(turn_id, program, TokenList(prompt), count)
        self.scheduler.submit(request, self.now, opened)
        if opened is not None:
            self.opened.pop(opened)
            self.backend.close(opened)

    def open(self, turn_id, program, prompt):
        self.opened[turn_id] = (program, list(prompt))
        self.backend.open(turn_id, prompt, GREEDY)
        self.scheduler.open(OpenRequest(turn_id, program, TokenList(prompt)))

    def revise(self, turn_id, keep, tokens):
        self.opened[turn_id][1][keep:] = tokens
        self.backend.revise(turn_id, keep, tokens)
        self.scheduler.revise(turn_id, keep, tokens, self.now)

    def close(self, turn_id):
        self.opened.pop(turn_id)
        self.backend.close(turn_id)
        self.scheduler.close(turn_id, self.now)

    def end_program(self, program):
        for turn_id in [one for one, (whose, _) in self.opened.items() if whose == program]:
            self.close(turn_id)
        self.scheduler.end_program(program, self.now)
        self.hear(self.scheduler.take_events())

    def cancel(self, turn_id):
        known = self.scheduler.cancel(turn_id, self.now)
        self.hear(self.scheduler.take_events())
        return known

    def step(self):
        """One cycle of the engine; True if a step was run."""
        done, failed = self.link.take_over()
        if done or failed:
            self.scheduler.transferred(done, self.now, failed)
        plan = self.scheduler.plan(self.now)
        self.link.begin(plan.transfers)
        self.now += 0.05
        events = []
        if plan.slices:
            result = self.backend.run(plan)
            for turn_id, sample in result.samples.items():
                assert sample.finish != "failed", sample
                self.turns[turn_id].tokens += sample.tokens
            events = self.scheduler.commit(plan, result, self.now)
        self.hear([*events, *self.scheduler.take_events()])
        return bool(plan.slices)

    def hear(self, events):
        for event in events:
            if isinstance(event, TurnFinished):
                turn = self.turns[event.stats.turn_id]
                assert turn.reason is None, "a turn ended twice"
                turn.reason = event.stats.reason
                self.backend.close(event.stats.turn_id)

    def check(self):
        self.scheduler.check_integrity()
        self.host.check_integrity()

    def drain(self, most=5000):
        """Run until every turn has ended and every copy is over."""
        for _ in range(most):
            if (
                not self.step()
                and not self.link.under_way
                and all(turn.reason for turn in self.turns.values())
            ):
                return
        raise AssertionError("the turns do not end")


def fake_cycle(seed, policy, *, pages=64, page=4, host=96, failing=0.05, **config):
    """A cycle over fake pages; ``draw`` is its link's source of chance."""
    draw = random.Random(seed)
    archive = FakeArchive(draw)
    settings = {"token_budget": 24, "max_seqs": 6, "max_wait": 20.0} | config
    return Cycle(
        FakeTurnBackend(page),
        lambda backend: FakeLink(backend, page, draw, archive, failing=failing),
        policy,
        pages=pages,
        page=page,
        host=host,
        config=settings,
        archive=archive,
    )


def right(turn: Served, vocab_size=50) -> bool:
    """Whether what came out is what was to come out, as far as it came."""
    wanted = fake_output(turn.prompt, turn.count, vocab_size)
    return turn.tokens == (wanted if turn.reason == "length" else wanted[: len(turn.tokens)])
