"""Fair shares: counters, virtual times, the bound on their difference, shares in a simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.recorder import Recorder
from agentrt.bench.records import RunRecord
from agentrt.bench.service import share_errors
from agentrt.bench.synthetic import synthetic_workload
from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.scheduling.fairness import TenantClock
from agentrt.scheduling.hints import TurnHints
from agentrt.scheduling.plan import Sample, StepResult, TurnFinished, TurnRequest
from agentrt.scheduling.policies.uwfq import ProgramClock
from agentrt.scheduling.policies.vtc import TokenCounters
from agentrt.scheduling.policy import Policy
from agentrt.scheduling.tokens import VirtualTokens
from agentrt.simulation.cost import COST_MODELS
from agentrt.simulation.run import Simulation


class Bench:
    """A scheduler with a policy, one second a step; every turn is a program of its own."""

    def __init__(self, policy: Policy, seats: int = 1, pages: int = 4096, budget: int = 2048):
        self.cache = PageCache(pages, 16, policy.retention.score)
        config = SchedulerConfig(
            token_budget=budget, max_seqs=seats, max_wait=1e9, reserve="output"
        )
        self.scheduler = Scheduler(self.cache, policy, config)
        self.now = 0.0
        self.count = 0

    def submit(self, tenant: str, prompt: int, output: int, **fields: object) -> str:
        self.count += 1
        name = f"{tenant}-{self.count}"
        tokens = VirtualTokens.first(prompt, name)
        request = TurnRequest(name, name, tokens, output, tenant=tenant, last=True, **fields)
        self.scheduler.submit(request, self.now)
        return name

    def step(self) -> list[str]:
        """Run a step; return the turns that ended."""
        plan = self.scheduler.plan(self.now)
        self.now += 1.0
        samples = {one.turn_id: Sample((0,)) for one in plan.slices if one.sample}
        events = self.scheduler.commit(plan, StepResult(samples), self.now) if plan.slices else []
        self.scheduler.check_integrity()
        return [one.stats.turn_id for one in events if isinstance(one, TurnFinished)]

    def run(self) -> list[str]:
        ended: list[str] = []
        for _ in range(10_000):
            ended += self.step()
            if not self.scheduler.statistics().waiting + self.scheduler.statistics().running:
                return ended
        raise AssertionError("the run does not end")


def fair(spec: str, **weights: float) -> tuple[Policy, TenantClock]:
    policy = make_policy(spec, Surroundings(tenants=weights))
    assert isinstance(policy.groups, TenantClock)
    return policy, policy.groups


class TestCounters:
    def test_100_input_and_10_output_tokens_count_120(self):
        policy, counters = fair("vtc")
        bench = Bench(policy)
        bench.submit("a", 100, 20)
        for _ in range(10):
            bench.step()
        assert counters.tenants["a"].time == 120

    def test_a_weight_divides_the_counter(self):
        policy, counters = fair("vtc", a=3.0)
        bench = Bench(policy)
        bench.submit("a", 100, 10)
        bench.run()
        assert counters.tenants["a"].service == 120
        assert counters.tenants["a"].time == pytest.approx(40)

    def test_cached_input_is_not_charged(self):
        policy, counters = fair("vtc")
        bench = Bench(policy)
        tokens = VirtualTokens.first(160, "shared")
        for number in range(2):
            request = TurnRequest(f"t{number}", "p", tokens.follow(160, 160, "x"), 1, tenant="a")
            bench.scheduler.submit(request, bench.now)
            bench.run()
        # The second one finds 9 of its 10 pages: its last token is always computed.
        assert counters.tenants["a"].service == 162 + 16 + 2

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
    def test_a_weight_must_be_above_0(self, weight):
        with pytest.raises(ConfigError, match="weight"):
            fair("vtc", a=weight)


class TestOrder:
    @pytest.mark.parametrize("spec", ["vtc", "uwfq", "fair=fcfs", "fair"])
    def test_the_tenant_that_had_less_goes_first(self, spec):
        bench = Bench(fair(spec)[0])
        first = [bench.submit("a", 200, 5) for _ in range(3)]
        other = bench.submit("b", 200, 5)
        assert bench.run() == [first[0], other, *first[1:]]

    @pytest.mark.parametrize("spec", ["vtc", "uwfq", "fair"])
    def test_weights_divide_the_service_three_to_one(self, spec):
        bench = Bench(fair(spec, a=3.0)[0])
        for _ in range(40):
            bench.submit("a", 100, 5)
            bench.submit("b", 100, 5)
        ended: list[str] = []
        while len(ended) < 40:
            ended += bench.step()
        assert Counter(name[0] for name in ended) == {"a": 30, "b": 10}

    @pytest.mark.parametrize("spec", ["vtc", "uwfq", "fair"])
    def test_being_idle_saves_nothing_up(self, spec):
        policy, clock = fair(spec)
        bench = Bench(policy)
        for _ in range(20):
            bench.submit("a", 500, 5)
        for _ in range(50):
            bench.step()
        late = bench.submit("b", 500, 5)
        assert clock.tenants["b"].time == clock.tenants["a"].time
        for _ in range(5):
            bench.submit("b", 500, 5)
        ended: list[str] = []
        while len(ended) < 4:
            ended += bench.step()
        assert late in ended
        assert Counter(name[0] for name in ended)["a"] >= 2

    def test_the_inner_order_holds_inside_a_tenant(self):
        """Program order, not arrival: the second turn of the older program goes first."""
        bench = Bench(fair("fair=program-fcfs")[0])
        bench.submit("b", 100, 8)
        sent = {}
        for name, program in (("old", "one"), ("young", "two"), ("again", "one")):
            sent[name] = VirtualTokens.first(50, name)
            request = TurnRequest(name, program, sent[name], 2, context=name, tenant="a")
            bench.scheduler.submit(request, bench.now)
            bench.now += 0.01
        assert bench.run()[1:] == ["old", "again", "young"]

    def test_a_turn_that_gives_way_is_charged_only_what_it_had(self):
        policy, clock = fair("fair=fcfs")
        bench = Bench(policy, seats=4, pages=12)
        config = SchedulerConfig(token_budget=64, max_seqs=4, max_wait=1e9, reserve="prompt")
        bench.scheduler = Scheduler(bench.cache, policy, config)
        for tenant in "abab":
            bench.submit(tenant, 30, 40)
        bench.run()
        stats = bench.scheduler.statistics()
        assert stats.preemptions > 0
        service = sum(tenant.service for tenant in clock.tenants.values())
        assert service == stats.prefilled_tokens + 2 * stats.output_tokens
        assert all(tenant.waiting == 0 for tenant in clock.tenants.values())


class TestPrograms:
    def test_a_short_program_passes_a_long_one_that_came_before(self):
        """The finish time of a program is fixed when it arrives, by what its turns are hinted."""
        clock = ProgramClock({})
        policy = make_policy("uwfq")
        policy = Policy("uwfq", clock.order, policy.retention, groups=clock, listeners=(clock,))
        bench = Bench(policy)
        bench.submit("a", 100, 10)
        bench.run()
        bench.submit("a", 50, 5)
        long = bench.submit("a", 100, 10, hints=TurnHints(remaining_turns=50))
        short = bench.submit("a", 100, 10, hints=TurnHints(remaining_turns=1))
        assert bench.run()[-2:] == [short, long]


@dataclass(frozen=True)
class Job:
    prompt: int
    output: int


JOBS = st.lists(st.builds(Job, st.integers(1, 120), st.integers(1, 40)), min_size=4, max_size=20)


@settings(max_examples=15, deadline=None)
@given(JOBS, JOBS, st.integers(1, 6))
def test_two_backlogged_clients_differ_by_no_more_than_the_published_bound(one, two, seats):
    """2 max(w_in L_in, w_out M): M is the most output that can run at once (OSDI'24)."""
    policy, counters = fair("vtc")
    bench = Bench(policy, seats=seats)
    for tenant, jobs in (("a", one), ("b", two)):
        for job in jobs:
            bench.submit(tenant, job.prompt, job.output)
    longest = max(job.prompt for job in one + two)
    most = seats * max(job.output for job in one + two)
    a, b = counters.tenants["a"], counters.tenants["b"]
    while a.waiting and b.waiting:
        assert abs(a.service - b.service) <= 2 * max(longest, 2 * most)
        bench.step()


@settings(max_examples=15, deadline=None)
@given(JOBS, JOBS, st.integers(1, 6), st.sampled_from([TenantClock, TokenCounters, ProgramClock]))
def test_all_service_is_charged_in_the_end(one, two, seats, kind):
    clock = kind({"a": 2.0})
    policy = Policy(
        "x", make_policy("fcfs").order, make_policy("fcfs").retention, groups=clock,
        listeners=(clock,),
    )  # fmt: skip
    bench = Bench(policy, seats=seats, budget=64)
    for tenant, jobs in (("a", one), ("b", two)):
        for job in jobs:
            bench.submit(tenant, job.prompt, job.output)
    bench.run()
    for tenant, jobs in (("a", one), ("b", two)):
        due = sum(job.prompt + 2 * job.output for job in jobs)
        assert clock.tenants[tenant].service == pytest.approx(due)


@pytest.mark.parametrize("spec", ["uwfq", "fair=fixed-ttl=30"])
def test_shares_of_3_to_1_are_kept_over_every_minute(spec):
    """Two tenants that always have turns waiting, at the costs of the reference engine."""
    weights = {"a": 3.0, "b": 1.0}
    programs = synthetic_workload("synthetic:two-tenants?programs=60&turns=8").programs
    cost = COST_MODELS["reference-8b"]
    policy = make_policy(spec, Surroundings(cost.prefill_seconds, tenants=weights))
    cache = PageCache(30_625, 16, policy.retention.score)
    scheduler = Scheduler(
        cache, policy, SchedulerConfig(max_seqs=32, max_wait=1e9, reserve="output")
    )
    record = RunRecord(spec, 0, "simulated", 490_000, "two")
    arrivals = [(0.0, program) for program in programs]
    assert Simulation(arrivals, scheduler, cost, Recorder(record)).run()
    errors = share_errors(record.turns, weights)
    assert errors["a"]["max"] is not None
    assert errors["a"]["max"] <= 0.03
