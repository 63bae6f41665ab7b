"""KV brought back from the host before its context returns: when, where to, who it yields to."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.fake import FakeBackend
from agentrt.scheduling.plan import PinEnded, ToolEvent, TurnAdmitted, TurnFinished, TurnRequest
from agentrt.scheduling.policies.return_times import AwayContexts
from agentrt.scheduling.policies.tiers import LONGEST, CheapestPlace
from agentrt.scheduling.policy import KeepOnHost, Policy, Prefetch
from agentrt.scheduling.surroundings import Surroundings
from agentrt.scheduling.tokens import TokenList
from tests.scheduling.memory import LateLink, Memory
from tests.scheduling.views import FakeContext, FakeProgram, FakeTurn

PAGE = 4


class Back(KeepOnHost):
    """Wants KV back ``after`` seconds and holds it for ``keep``."""

    def __init__(self, after: float, keep: float = 100.0) -> None:
        self.after, self.keep = after, keep

    def prefetch(self, context, now):
        return Prefetch(now + self.after, self.keep)


class Bench:
    """A scheduler with a host tier whose copies take ``lag`` looks; pages of 4 tokens."""

    def __init__(self, pool=10, host=40, after=10.0, keep=100.0, lag=1):
        plain = make_policy("program-fcfs")
        policy = Policy("test", plain.order, plain.retention, tiering=Back(after, keep))
        self.kv, self.host = (PageCache(n, PAGE, plain.retention.score) for n in (pool, host))
        config = SchedulerConfig(token_budget=64, max_seqs=4, max_wait=1e9)
        self.scheduler = Scheduler(self.kv, policy, config, host=self.host)
        self.backend = FakeBackend()
        self.link, self.memory = LateLink([lag]), Memory(PAGE)
        self.tokens, self.events, self.begun = {}, [], []
        self.now = 0.0

    def submit(self, turn_id, prompt, output=1):
        program = turn_id.partition("/")[0]
        ids = (
            prompt if isinstance(prompt, list) else [100 * ord(program) + i for i in range(prompt)]
        )
        self.tokens[turn_id] = TokenList(ids)
        request = TurnRequest(turn_id, program, self.tokens[turn_id], output)
        self.scheduler.submit(request, self.now)

    def look(self):
        """One cycle; True if a step was run."""
        for transfer in self.link.take_done():
            self.memory.copy(transfer)
            self.scheduler.transferred([transfer.ticket], self.now)
        plan = self.scheduler.plan(self.now)
        self.link.begin(plan.transfers)
        self.link.check(plan, PAGE)
        self.begun += plan.transfers
        if plan.slices:
            for piece in plan.slices:
                self.memory.run(piece, self.tokens[piece.turn_id].ids)
            self.events += self.scheduler.commit(plan, self.backend.run(plan), self.now)
        self.events += self.scheduler.take_events()
        self.scheduler.check_integrity()
        return bool(plan.slices)

    def settle(self, looks=8):
        for _ in range(looks):
            self.look()

    def held(self, turn_id, tokens):
        keys = self.tokens[turn_id].page_keys(PAGE, tokens // PAGE)
        return self.kv.match(keys)

    def free_all(self):
        """Evict everything that can go, so that its pages are free."""
        count = self.kv.available()
        lease = self.kv.acquire("free", [], count, self.now)
        self.kv.release(lease, self.now)

    def loads(self):
        return [one for one in self.begun if one.kind == "load"]


class TestWhen:
    def test_it_comes_back_before_it_is_asked_for(self):
        bench = Bench()
        bench.submit("a/0", 16)
        bench.settle()
        bench.free_all()
        assert bench.held("a/0", 16) == 0
        assert bench.scheduler.next_prefetch() == 10.0
        bench.now = 9.0
        bench.settle()
        assert not bench.loads()
        bench.now = 10.0
        bench.settle()
        assert bench.held("a/0", 16) == 4
        assert bench.scheduler.statistics().pins == 1
        assert bench.scheduler.statistics().prefetched_tokens == 16
        bench.now = 20.0
        bench.submit("a/1", [*bench.tokens["a/0"].ids, 5, 6])
        bench.settle()
        (back,) = [one for one in bench.events if isinstance(one, TurnAdmitted) and one.time == 20]
        assert back.cached_tokens == 16
        assert len(bench.loads()) == 1

    def test_what_is_still_in_the_pool_is_only_held(self):
        bench = Bench()
        bench.submit("a/0", 16)
        bench.settle()
        bench.now = 10.0
        bench.settle()
        assert not bench.loads()
        assert bench.scheduler.statistics().pins == 1

    def test_a_context_that_is_back_is_not_brought(self):
        bench = Bench()
        bench.submit("a/0", 16)
        bench.settle()
        bench.free_all()
        bench.submit("a/1", [*bench.tokens["a/0"].ids, 5], output=2)
        bench.settle()
        assert bench.scheduler.next_prefetch() == 10.0
        assert len(bench.loads()) == 1  # its own, when it started

    def test_a_program_that_ends_is_not_brought(self):
        bench = Bench()
        bench.submit("a/0", 16)
        bench.settle()
        bench.scheduler.end_program("a", bench.now)
        assert bench.scheduler.next_prefetch() is None

    def test_a_tool_that_gets_on_moves_it(self):
        bench = Bench()
        bench.submit("a/0", 16)
        bench.settle()
        bench.scheduler.tool_event(ToolEvent("a", "main", "frozen", "bash"), 7.0)
        assert bench.scheduler.next_prefetch() == 17.0

    def test_it_waits_for_room_that_nobody_holds(self):
        bench = Bench(pool=8)
        bench.submit("a/0", 16)
        bench.settle()
        bench.free_all()
        held = bench.kv.acquire("other", [], 3, 0.0)
        bench.now = 10.0
        bench.settle()
        assert not bench.loads()
        assert bench.scheduler.next_prefetch() == pytest.approx(10.5)
        bench.kv.release(held, bench.now)
        bench.now = 11.0
        bench.settle()
        assert bench.held("a/0", 16) == 4


class TestWhileItComes:
    def test_its_turn_waits_for_it_rather_than_computing_it(self):
        bench = Bench(lag=5)
        bench.submit("a/0", 16)
        bench.settle()
        bench.free_all()
        bench.now = 10.0
        bench.look()
        assert len(bench.loads()) == 1
        bench.submit("a/1", [*bench.tokens["a/0"].ids, 5])
        assert not bench.look()
        bench.settle()
        done = [one.stats for one in bench.events if isinstance(one, TurnFinished)]
        assert [stats.prefilled_tokens for stats in done] == [16, 2]
        assert len(bench.loads()) == 1

    def test_a_program_that_ends_meanwhile_leaves_nothing_behind(self):
        bench = Bench(lag=5)
        bench.submit("a/0", 16)
        bench.settle()
        bench.free_all()
        bench.now = 10.0
        bench.look()
        bench.scheduler.end_program("a", bench.now)
        bench.settle()
        assert bench.kv.available() == 10
        assert bench.host.available() == 40
        assert not bench.kv._tree._tails.keys() - {"free"}

    def test_a_copy_that_fails_brings_nothing(self):
        bench = Bench(lag=100)
        bench.submit("a/0", 16)
        bench.settle()
        (store,) = bench.begun
        bench.scheduler.transferred([], bench.now, [store.ticket])
        bench.free_all()
        bench.now = 10.0
        bench.settle()
        assert not bench.loads()


class TestYielding:
    def test_a_soft_pin_gives_way_to_any_turn_and_another_does_not(self):
        bench = Bench(pool=8)
        bench.submit("a/0", 16)
        bench.settle()
        bench.now = 10.0
        bench.settle()
        assert bench.scheduler.statistics().pins == 1
        bench.submit("b/0", 24, output=4)
        bench.settle()
        (broken,) = [one for one in bench.events if isinstance(one, PinEnded)]
        assert (broken.program_id, broken.outcome) == ("a", "broken")
        assert len([one for one in bench.events if isinstance(one, TurnFinished)]) == 2

    def test_it_is_held_for_as_long_as_was_said(self):
        bench = Bench(keep=3.0)
        bench.submit("a/0", 16)
        bench.settle()
        bench.now = 10.0
        bench.settle()
        bench.now = 13.5
        bench.settle()
        (pin,) = [one for one in bench.events if isinstance(one, PinEnded)]
        assert (pin.outcome, pin.end) == ("expired", 13.0)


class TestAgentrt:
    def test_it_is_early_by_the_lower_quantile_and_the_copy(self):
        away = AwayContexts()
        around = Surroundings(reload_seconds=lambda tokens: 0.001 * tokens)
        place = CheapestPlace(around, away)
        context = FakeContext(FakeProgram("p"), length=1000)
        turn, now = FakeTurn(context), 0.0
        for gap in [20.0, 40.0] * 100:
            away.leave(turn, now)
            away.submitted(turn, now + gap)
            now += 50.0
        assert place.prefetch(context, now) is None
        forecast = away.leave(turn, now)
        wish = place.prefetch(context, now)
        lead = 0.001 * 1000
        assert wish.at == pytest.approx(now + forecast.quantile(0.25) - lead)
        assert 15.0 <= wish.at - now <= 25.0
        assert 0.0 < wish.keep <= LONGEST
        assert CheapestPlace(around).prefetch(context, now) is None
