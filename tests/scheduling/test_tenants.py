"""Quotas: tokens a minute, programs, KV; what is refused; accounts."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from agentrt.scheduling.plan import Sample, StepResult, TurnAdmitted, TurnRequest
from agentrt.scheduling.tenants import TenantSettings, parse_tenants, with_quotas
from agentrt.scheduling.tokens import VirtualTokens


class Bench:
    """A scheduler with quotas; one second a step."""

    def __init__(self, policy: str = "fcfs", *, seats: int = 8, max_wait: float = 1e9, **tenants):
        made, self.book = with_quotas(make_policy(policy), tenants)
        cache = PageCache(1000, 10, made.retention.score)
        config = SchedulerConfig(max_seqs=seats, max_wait=max_wait, reserve="output")
        self.scheduler = Scheduler(cache, made, config)
        self.now = 0.0
        self.started: list[str] = []

    def submit(self, name: str, tenant: str, prompt: int = 100, output: int = 5, **more) -> None:
        more = {"program_id": name, "last": True} | more
        tokens = VirtualTokens.first(prompt, name)
        self.scheduler.submit(TurnRequest(name, tokens=tokens, max_output=output, tenant=tenant, **more), self.now)  # fmt: skip  # noqa: E501

    def run(self, steps: int) -> list[str]:
        """Run so many steps; return the turns started by them."""
        before = len(self.started)
        for _ in range(steps):
            plan = self.scheduler.plan(self.now)
            self.now += 1.0
            samples = {one.turn_id: Sample((0,)) for one in plan.slices if one.sample}
            events = self.scheduler.take_events()
            if plan.slices:
                events += self.scheduler.commit(plan, StepResult(samples), self.now)
            self.scheduler.check_integrity()
            self.started += [one.turn_id for one in events if isinstance(one, TurnAdmitted)]
        return self.started[before:]


class TestTokens:
    def test_a_tenant_that_spent_its_minute_waits_for_it_to_fill(self):
        bench = Bench(a=TenantSettings(tokens_per_minute=60))
        bench.submit("a1", "a", prompt=95, output=5)
        bench.submit("a2", "a")
        bench.submit("b1", "b")
        assert bench.run(10) == ["a1", "b1"]
        # 60 were there, 100 are spent: the account is at 0 again after 40 s.
        assert bench.run(29) == []
        assert bench.run(3) == ["a2"]

    def test_the_driver_is_told_when_to_look_again(self):
        bench = Bench(a=TenantSettings(tokens_per_minute=60))
        bench.submit("a1", "a", prompt=95, output=5)
        bench.run(6)
        bench.submit("a2", "a")
        bench.run(1)
        assert bench.scheduler.next_deadline(bench.now) == pytest.approx(40.0, abs=1.0)

    def test_cached_tokens_are_free(self):
        bench = Bench(a=TenantSettings(tokens_per_minute=1000))
        tokens = VirtualTokens.first(101, "one")
        for name in ("first", "second"):
            request = TurnRequest(name, "p", tokens.follow(101, 101, name), 1, tenant="a")
            bench.scheduler.submit(request, bench.now)
            bench.run(2)
        assert bench.book.statistics()["a"].prefilled_tokens == 101 + 1

    def test_the_waiting_bound_is_above_a_quota(self):
        bench = Bench(max_wait=5, a=TenantSettings(tokens_per_minute=1))
        bench.submit("a1", "a")
        bench.submit("a2", "a")
        assert bench.run(5) == ["a1"]
        assert bench.run(3) == ["a2"]


class TestPrograms:
    def test_one_more_begins_when_one_has_ended(self):
        bench = Bench(a=TenantSettings(programs=2))
        for number in range(3):
            bench.submit(f"a{number}", "a", output=5 + number)
        bench.submit("b", "b")
        assert bench.run(4) == ["a0", "a1", "b"]
        assert bench.book.statistics()["a"].programs == 2
        assert bench.run(3) == ["a2"]

    def test_later_turns_of_a_program_under_way_go_on(self):
        bench = Bench(a=TenantSettings(programs=1))
        bench.submit("one", "a", program_id="p", last=False)
        bench.submit("other", "a", program_id="q")
        bench.run(6)
        bench.submit("two", "a", program_id="p")
        assert bench.run(8) == ["two", "other"]


class TestKV:
    def test_running_turns_hold_no_more_than_the_share(self):
        bench = Bench(a=TenantSettings(kv_share=0.25))
        for number in range(4):
            bench.submit(f"a{number}", "a", prompt=1000, output=50)
        bench.submit("b", "b", prompt=1000)
        # The pool holds 10,000 tokens: two of 1,050 are within a quarter, three are not.
        assert bench.run(2) == ["a0", "a1", "b"]

    def test_pins_count_but_not_the_context_that_is_back(self):
        bench = Bench("fixed-ttl=500", a=TenantSettings(kv_share=0.25))
        bench.submit("one", "a", prompt=1500, program_id="p", last=False)
        bench.run(8)
        assert bench.scheduler.statistics().pins == 1
        bench.submit("small", "a", prompt=200, output=50)
        bench.run(1)
        bench.submit("big", "a", prompt=900)
        assert bench.run(1) == []
        bench.submit("two", "a", prompt=1505, program_id="p", last=False)
        assert bench.run(1) == ["two"]

    def test_a_tenant_with_nothing_running_starts(self):
        bench = Bench(a=TenantSettings(kv_share=0.01))
        bench.submit("a", "a", prompt=2000)
        assert bench.run(1) == ["a"]


class TestRefusal:
    def test_nobody_is_refused_without_a_quota(self):
        bench = Bench(a=TenantSettings())
        bench.submit("a", "a")
        assert bench.book.refusal("a", 0.0) is None
        assert bench.book.refusal("unknown", 0.0) is None

    def test_a_full_queue(self):
        bench = Bench(seats=1, a=TenantSettings(queue=2))
        for number in range(3):
            assert bench.book.refusal("a", bench.now) is None
            bench.submit(f"a{number}", "a", output=20)
            bench.run(1)
        assert bench.book.refusal("a", bench.now) == 1.0
        assert bench.book.refusal("b", bench.now) is None

    def test_a_wait_for_tokens_beyond_what_may_be_queued(self):
        bench = Bench(a=TenantSettings(tokens_per_minute=60, queue_seconds=30))
        bench.submit("a", "a", prompt=155, output=5)
        bench.run(5)
        # 100 below zero, less 5 s of refill: 95 s or so to wait, 30 of them in the queue.
        assert bench.book.refusal("a", bench.now) == pytest.approx(65, abs=2)
        assert bench.book.refusal("a", bench.now + 70) is None


class TestAccounts:
    def test_turns_and_tokens_are_counted_by_tenant(self):
        bench = Bench(a=TenantSettings(programs=1))
        bench.submit("a1", "a", prompt=100, output=5)
        bench.submit("a2", "a", prompt=50, output=5)
        bench.submit("b1", "b", prompt=70, output=3)
        bench.scheduler.cancel("b1", 0.0)
        bench.run(2)
        now = bench.book.statistics()
        assert (now["a"].running, now["a"].waiting, now["a"].held_back) == (1, 1, 1)
        bench.run(20)
        done = bench.book.statistics()
        assert (done["a"].prefilled_tokens, done["a"].output_tokens) == (150, 10)
        assert (done["a"].turns_finished, done["b"].turns_finished) == (2, 1)
        assert (done["b"].prefilled_tokens, done["b"].waiting, done["a"].programs) == (0, 0, 0)


class TestSettings:
    def test_tables_become_settings(self):
        found = parse_tenants({"a": {"weight": 3, "programs": 2}, "b": {}}, where="x.toml")
        assert found == {"a": TenantSettings(weight=3, programs=2), "b": TenantSettings()}

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ({"wieght": 2}, "wieght"),
            ({"weight": 0}, "out of range"),
            ({"weight": "3"}, "type"),
            ({"programs": 1.5}, "out of range"),
            ({"kv_share": 1.5}, "out of range"),
            (3, "no table"),
        ],
    )
    def test_what_is_wrong_is_named(self, table, problem):
        with pytest.raises(ConfigError, match=problem):
            parse_tenants({"a": table}, where="x.toml")
