"""The policy of our own: sizes, working sets, guests, return times, switches."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from agentrt.errors import ConfigError
from agentrt.scheduling import Surroundings, make_policy
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.policies.agentrt import INGREDIENTS, SizeOrder
from agentrt.scheduling.policies.crowd import Crowd
from agentrt.scheduling.policies.program_sizes import ProgramSizes
from agentrt.scheduling.policies.residency import Residency, Stage, WorkingSets
from agentrt.scheduling.policies.return_times import (
    LONGEST,
    SHORTEST,
    AwayContexts,
    ReturnTimes,
)
from agentrt.scheduling.policies.working_set import WorkingSetAdmission


@dataclass(eq=False)
class Program:
    program_id: str = "p"
    arrival: float = 0.0
    turns_served: int = 0
    service: float = 0.0
    contexts: dict = field(default_factory=dict)


@dataclass(eq=False)
class Context:
    program: Program
    name: str = "main"
    length: int = 0
    pinned: bool = False

    @property
    def owner(self):
        return f"{self.program.program_id}\0{self.name}"


@dataclass(eq=False)
class Turn:
    state: Context
    prompt_tokens: int = 100
    max_output: int = 10
    submitted: float = 0.0
    preemptions: int = 0
    pinned: bool = False
    tool: str | None = "bash"
    hints: TurnHints = NO_HINTS

    @property
    def program(self):
        return self.state.program

    @property
    def program_id(self):
        return self.program.program_id

    @property
    def program_turns(self):
        return self.program.turns_served

    @property
    def program_arrival(self):
        return self.program.arrival

    @property
    def length(self):
        return self.prompt_tokens + self.max_output


def turn(name="p", served=0, service=0.0, **fields):
    program = Program(name, turns_served=served, service=service)
    return Turn(Context(program, length=fields.get("prompt_tokens", 100)), **fields)


def pool(waiting=0, max_wait=600.0, capacity=1000):
    return SimpleNamespace(waiting=waiting, max_wait=max_wait, capacity=capacity)


def sizes_of(*counts):
    sizes = ProgramSizes()
    for count in counts:
        sizes.program_ended(Program(turns_served=count), 0.0)
    return sizes


class TestProgramSizes:
    def test_before_anything_has_ended_the_prior_speaks(self):
        assert ProgramSizes().survival(7, 10) == pytest.approx(0.98**10)

    def test_survival_is_conditioned_on_what_was_served(self):
        sizes = sizes_of(*[10] * 50, *[100] * 50)
        young, old = sizes.survival(0, 20), sizes.survival(20, 20)
        assert young == pytest.approx((50 + 6 * 0.98**20) / 106)
        assert old == pytest.approx((50 + 6 * 0.98**20) / 56)

    def test_growth_follows_what_contexts_gain(self):
        sizes, program = ProgramSizes(), Program()
        context = Context(program)
        for length in range(0, 300_000, 3000):
            sizes.ended(Turn(context, prompt_tokens=length), "stop", 0.0)
        assert 2000 < sizes.growth < 3000


class TestOrder:
    def order(self, dear=False, **options):
        settings = {"by_size": True, "inside_first": True} | options
        return SizeOrder(ProgramSizes(), Residency(), SimpleNamespace(dear=dear), **settings)

    def test_pinned_first_then_who_has_had_least(self):
        order = self.order()
        old, new = turn("old", service=90.0), turn("new", service=1.0)
        pinned = turn("pinned", service=500.0, pinned=True)
        assert sorted([old, new, pinned], key=order) == [pinned, new, old]

    def test_hints_of_few_turns_left_go_first_and_many_last(self):
        order = self.order()
        short = turn("short", hints=TurnHints(remaining_turns=2))
        plain = turn("plain")
        long = turn("long", hints=TurnHints(remaining_turns=400))
        assert sorted([long, plain, short], key=order) == [short, plain, long]

    def test_a_dear_bound_or_no_size_orders_by_arrival(self):
        for order in (self.order(dear=True), self.order(by_size=False)):
            first, second = turn("a", service=900.0), turn("b")
            second.program.arrival = 5.0
            assert sorted([second, first], key=order) == [first, second]
            assert order.yields(second.state) > order.yields(first.state)

    def test_the_pin_of_the_lowest_ranked_yields_first(self):
        order = self.order()
        assert order.yields(turn("a", service=50.0).state) > order.yields(turn("b").state)


class TestCrowd:
    def crowd(self, waiting, max_wait=100.0):
        residency = Residency()
        view = pool(waiting=waiting, max_wait=max_wait)
        residency.opened(view)
        around = Surroundings(prefill_seconds=lambda tokens: tokens / 1000)
        return Crowd(residency, around), residency, view

    def test_the_price_is_a_prefill_for_each_that_waits_in_every_bound(self):
        crowd, residency, view = self.crowd(waiting=5)
        assert crowd.price() == 0.0  # nobody is inside: nothing is displaced
        residency.sets.put("a", 1000, Stage.of(3, None))
        residency.sets.put("b", 3000, Stage.of(3, None))
        assert crowd.price() == pytest.approx(5 * 2.0 / 100)
        view.max_wait = float("inf")
        assert crowd.price() == 0.0

    def test_a_crowd_counts_for_a_while_after_it_has_gone(self):
        crowd, residency, view = self.crowd(waiting=10)
        residency.sets.put(
            "a", 4000, Stage.of(3, None)
        )  # 10 * 4 s / 100 s: four times what is dear
        some = turn("some")
        crowd.submitted(some, 10.0)
        assert (crowd.dear, crowd.epoch) == (True, 1)
        view.waiting = 0
        crowd.ended(some, "stop", 1000.0)
        assert crowd.dear  # half as much every ten minutes
        crowd.ended(some, "stop", 1500.0)
        assert (crowd.dear, crowd.epoch) == (False, 2)
        view.waiting = 2
        crowd.submitted(some, 2000.0)
        assert not crowd.dear


class TestWorkingSets:
    def test_sums_add_up_after_every_change(self):
        sets = WorkingSets()
        sets.put("a", 100, Stage.of(3, None))
        sets.put("b", 50, Stage.of(5, None))
        sets.put("a", 200, Stage.of(20, 3))
        assert sets.mean_tokens == 125.0
        sets.drop("unknown")
        assert sorted((n, tokens) for _, n, tokens, _ in sets.groups()) == [(1, 50), (1, 200)]
        sets.drop("a")
        sets.drop("b")
        assert not len(sets)
        assert sets.mean_tokens == 0.0
        assert list(sets.groups()) == []

    def test_a_newcomer_waits_while_those_inside_would_outgrow_the_pool(self):
        residency, sizes = Residency(), sizes_of(*[100] * 200)
        sizes.growth = 10.0
        crowd = SimpleNamespace(dear=False)
        admission = WorkingSetAdmission(sizes, residency, crowd)
        newcomer = turn("new", prompt_tokens=100, max_output=0)
        assert admission.verdict(newcomer, pool(capacity=50), 0.0) == "start"  # nobody is inside
        residency.started(turn("a", prompt_tokens=100, max_output=0), 0.0)
        demand = admission.peak(100, Stage.of(0, None))
        assert 1300 < demand < 2 * 800  # two programs, 10 tokens a turn, in 64 turns nearly sure
        crowd.dear = True
        assert demand < admission.peak(100, Stage.of(0, None))  # guests need room
        crowd.dear = False
        assert admission.verdict(newcomer, pool(capacity=int(demand) - 1), 0.0) == "wait"
        assert admission.verdict(newcomer, pool(capacity=int(demand) + 1), 0.0) == "start"
        assert admission.peak(100, Stage.of(0, 8)) < demand - 500  # it says that it is short
        newcomer.pinned = True
        assert admission.verdict(newcomer, pool(capacity=1), 0.0) == "start"


class TestInside:
    def test_a_programs_other_contexts_come_in_with_it(self):
        residency, sizes = Residency(), sizes_of(*[100] * 200)
        main, other = turn("a"), turn("b")
        sub = Turn(Context(main.program, name="sub"))
        main.program.contexts = {"main": main.state, "sub": sub.state}
        admission = WorkingSetAdmission(sizes, residency, SimpleNamespace(dear=False))
        order = SizeOrder(
            sizes,
            residency,
            SimpleNamespace(dear=False),
            by_size=False,
            inside_first=True,
        )
        other.program.arrival = -1.0
        assert sorted([sub, other], key=order) == [other, sub]
        residency.pinned(main.state, 1.0)
        assert sorted([sub, other], key=order) == [sub, other]
        full = pool(capacity=1)
        assert admission.verdict(sub, full, 2.0) == "start"
        assert admission.verdict(other, full, 2.0) == "wait"
        residency.opened(pool(max_wait=1.0))
        residency.started(sub, 5.0)
        assert not residency.is_guest(sub)  # it came in by its program, however long it waited
        residency.unpinned(main.state, "expired", 6.0)
        residency.ended(sub, "stop", 6.0)
        assert not residency.is_inside(sub)


class TestStages:
    def test_what_is_told_counts_until_the_program_ends(self):
        residency, told = Residency(), turn("a", hints=TurnHints(remaining_turns=40))
        assert residency.stage(told) == Stage.of(0, 40)
        told.program.turns_served = 24
        residency.pinned(told.state, 1.0)
        assert [stage for stage, *_ in residency.sets.groups()] == [Stage.of(24, 16)]
        residency.program_ended(told.program, 2.0)
        plain = Turn(told.state)
        assert residency.stage(plain) == Stage.of(24, None)
        assert Residency(heed_hints=False).stage(told) == Stage.of(24, None)


class TestGuests:
    def test_an_aged_turn_from_outside_is_not_pinned_while_others_wait(self):
        residency, away = Residency(), AwayContexts()
        retention = ReturnTimes(away, residency, Surroundings())
        for waiting, guest in ((3, True), (0, False)):
            residency.opened(pool(waiting=waiting, max_wait=100.0))
            aged = turn(f"aged{waiting}")
            residency.started(aged, 100.0)
            assert residency.is_guest(aged)
            residency.ended(aged, "stop", 101.0)
            assert (retention.turn_ended(aged, 101.0) == 0.0) is guest
            assert not residency.is_guest(aged)

    def test_one_whose_pin_is_handed_off_is_no_guest(self):
        residency = Residency()
        residency.opened(pool(waiting=3, max_wait=100.0))
        aged = turn("aged")
        residency.unpinned(aged.state, "handed_off", 100.0)
        residency.started(aged, 100.0)
        assert not residency.is_guest(aged)


class TestReturnTimes:
    def retention(self, **around):
        residency, away = Residency(), AwayContexts()
        residency.opened(pool(waiting=1))
        return ReturnTimes(away, residency, Surroundings(**around)), away

    def test_a_pin_follows_what_was_learned_within_bounds(self):
        retention, away = self.retention()
        now = 0.0
        for _ in range(200):
            retention.turn_ended(turn("p"), now)
            away.submitted(turn("p"), now + 40.0)
            now += 50.0
        ttl = retention.turn_ended(turn("p"), now)
        assert 40.0 <= ttl <= LONGEST
        assert retention.turn_ended(turn("q", hints=TurnHints(gap_seconds=1e9)), now) == LONGEST
        assert retention.turn_ended(turn("r", tool="other"), now) >= SHORTEST

    def test_a_host_tier_makes_pins_short(self):
        plain, _ = self.retention()
        tiered, _ = self.retention(reload_seconds=lambda tokens: 1e-6 * tokens)
        assert tiered.turn_ended(turn(), 0.0) < 0.1 < plain.turn_ended(turn(), 0.0)


class TestSwitches:
    @pytest.mark.parametrize("name", INGREDIENTS)
    def test_each_ingredient_can_be_switched_off(self, name):
        assert make_policy(f"agentrt=no-{name}").name == f"agentrt=no-{name}"

    @pytest.mark.parametrize("argument", ["size", "no-such", "no-size,admission"])
    def test_another_word_is_refused_with_the_list(self, argument):
        with pytest.raises(ConfigError, match="no ingredient"):
            make_policy(f"agentrt={argument}")

    def test_tenants_with_weights_come_above_the_order(self):
        weighted = Surroundings(tenants={"a": 3.0})
        assert make_policy("agentrt", weighted).groups is not None
        assert make_policy("agentrt=no-tenants", weighted).groups is None


def test_oracles_need_the_future():
    for name in ("belady", "true-ttl"):
        with pytest.raises(ConfigError, match="only a simulation"):
            make_policy(name)
