"""SAGA's formulas, against hand-worked values."""

from __future__ import annotations

import math

import pytest

from agentrt.scheduling import make_policy
from agentrt.scheduling.graph import ExecutionGraphs, TurnFacts
from agentrt.scheduling.hints import TurnHints
from agentrt.scheduling.policies.saga_eviction import WorkflowRetention, eviction_score
from agentrt.scheduling.policies.saga_share import FairShares, fair_share
from agentrt.scheduling.policies.saga_ttl import ToolTimes, pressure, tool_ttl, tool_type
from tests.scheduling.views import FakePool, FakeRun, FakeTurn, turn_of


class TestTTL:
    @pytest.mark.parametrize(("used", "ttl"), [(0.0, 2.4), (0.7, 2.4), (0.8, 1.8), (0.9, 1.2)])
    def test_pressure_halves_it(self, used, ttl):
        assert tool_ttl(2.4, used) == pytest.approx(ttl)

    def test_it_is_capped_and_nothing_is_kept_in_a_full_pool(self):
        assert tool_ttl(1000.0, 0.0) == 300.0
        assert tool_ttl(1000.0, 0.91) == 0.0
        assert (pressure(0.5), pressure(0.95)) == (0.0, 1.0)

    @pytest.mark.parametrize(
        ("tool", "p95"),
        [("bash:test", 2.4), ("read_file", 0.32), ("fetch_url", 4.5), ("sql", 0.89)],
    )
    def test_the_priors_by_tool_type(self, tool, p95):
        assert ToolTimes().p95(tool) == pytest.approx(p95, rel=1e-3)

    def test_unknown_tools_execute_code(self):
        assert tool_type("frobnicate") == "code"

    def test_gaps_move_the_distribution_by_a_tenth(self):
        times = ToolTimes()
        for _ in range(200):
            times.add("bash", 10.0)
        assert times.p95("bash") == pytest.approx(10.0, rel=0.01)
        times.add("bash", 10.0 * math.e)
        spread = math.sqrt(0.9 * 0.1)
        assert math.log(times.p95("bash") / 10.0) == pytest.approx(0.1 + 1.6449 * spread, rel=0.01)
        assert times.p95("read") == pytest.approx(0.32, rel=1e-3)


class TestEviction:
    def test_score(self):
        assert eviction_score(1.0, 0.0, 1.0) == pytest.approx(1.0)
        assert eviction_score(0.0, 1.0, 0.0) == 0.0

    def retention(self, *turns: FakeTurn, used: float = 0.0) -> WorkflowRetention:
        graphs = ExecutionGraphs()
        for turn in turns:
            facts = TurnFacts(turn.tool, turn.prompt_tokens, turn.output)
            graphs.turn_ended(turn.program_id, facts)
        retention = WorkflowRetention(graphs)
        retention.clock.opened(FakePool(1000, leased=int(1000 * used)))
        retention.clock.tick(100.0)
        return retention

    def test_what_nobody_owns_is_older_and_larger_goes_first(self):
        small, large = turn_of("a", prompt_tokens=100), turn_of("b", prompt_tokens=1000)
        retention = self.retention(small, large)
        retention.turn_ended(small, 100.0)
        retention.turn_ended(large, 100.0)
        runs = {
            "nobody's": FakeRun((), 100.0),
            "old": FakeRun((small.state.owner,), -200.0),
            "large": FakeRun((large.state.owner,), 100.0),
            "small": FakeRun((small.state.owner,), 100.0),
        }
        assert sorted(runs, key=lambda name: retention.score(runs[name])) == list(runs)

    def test_a_client_that_is_done_makes_its_kv_go_first(self):
        done, going = turn_of("a", hints=TurnHints(remaining_turns=0)), turn_of("b")
        retention = self.retention(done, going)
        retention.turn_ended(done, 100.0)
        retention.turn_ended(going, 100.0)
        scores = [retention.score(FakeRun((t.state.owner,), 100.0)) for t in (done, going)]
        assert scores[0] < scores[1]

    def test_pins_follow_the_tool_and_the_pressure(self):
        turn = turn_of(tool="bash")
        assert self.retention().turn_ended(turn, 0.0) == pytest.approx(2.4, rel=1e-3)
        assert self.retention(used=0.8).turn_ended(turn, 0.0) == pytest.approx(1.8, rel=1e-3)
        assert self.retention(used=0.95).turn_ended(turn, 0.0) == 0.0
        assert self.retention().turn_ended(turn_of(tool=None), 0.0) == 0.0

    def test_ended_programs_are_forgotten(self):
        retention, turn = self.retention(), turn_of()
        retention.turn_ended(turn, 0.0)
        retention.clock.program_ended(turn.program, 1.0)
        owned, free = FakeRun((turn.state.owner,), 50.0), FakeRun((), 50.0)
        assert retention.score(owned) == retention.score(free)


class TestTiers:
    def test_declared_inferred_and_cold_are_the_graphs(self):
        graphs = ExecutionGraphs()
        retention = WorkflowRetention(graphs)
        turn = turn_of("z", prompt_tokens=100)
        graphs.turn_ended("z", TurnFacts("bash", 100, 10))
        retention.turn_ended(turn, 0.0)
        cold = retention.score(FakeRun((turn.state.owner,), 0.0))
        for program in range(30):  # programs of this type end after their second turn
            for _ in range(2):
                graphs.turn_ended(program, TurnFacts("bash", 100, 10))
            graphs.program_ended(program)
        graphs.turn_ended("z", TurnFacts("bash", 100, 10))
        assert graphs.forecast("z").tier == "inferred"
        retention.turn_ended(turn, 0.0)
        assert retention.score(FakeRun((turn.state.owner,), 0.0)) < cold


class TestFairShare:
    def shares(self) -> FairShares:
        return FairShares(ExecutionGraphs(), lambda tokens: tokens / 100)

    def test_one_programs_part(self):
        assert fair_share(30.0, 110.0, 100.0) == 3.0
        assert fair_share(30.0, 90.0, 100.0) == 30.0

    def test_the_tenant_with_the_more_urgent_work_goes_first(self):
        shares = self.shares()
        late = turn_of("a", tenant="late", hints=TurnHints(program_deadline=5.0))
        early = turn_of("b", tenant="early", hints=TurnHints(program_deadline=5000.0))
        for turn in (early, late):
            shares.submitted(turn, 0.0)
        shares.tick(0.0)
        assert shares.share("late") == pytest.approx(1000 * shares.share("early"))
        assert shares.key(shares.group(late)) < shares.key(shares.group(early))

    def test_it_takes_the_place_of_a_much_lower_one_after_half_a_second(self):
        shares = self.shares()
        late = turn_of("a", tenant="late", hints=TurnHints(program_deadline=5.0))
        early = turn_of("b", tenant="early", hints=TurnHints(program_deadline=5000.0))
        for turn in (early, late):
            shares.submitted(turn, 0.0)
        shares.tick(0.0)
        assert not shares.preempts(late, early, 0.5)
        assert shares.preempts(late, early, 0.6)
        assert not shares.preempts(early, late, 0.6)

    def test_deadlines_are_half_as_long_again_as_programs_took(self):
        shares = self.shares()
        first = turn_of("a")
        shares.submitted(first, 0.0)
        first.program.turns_served = 1
        shares.ended(first, "stop", 10.0)
        shares.program_ended(first.program, 40.0)
        second = turn_of("b", arrival=100.0)
        shares.submitted(second, 100.0)
        assert shares._tasks[second.program].deadline == pytest.approx(100.0 + 1.5 * 40.0)


def test_the_policy_is_put_together():
    policy = make_policy("saga")
    assert policy.retention.rescore
    assert policy.pin_break == "head"
    old, new = turn_of("a", submitted=9.0), turn_of("b", arrival=5.0, submitted=5.0)
    assert policy.order(old) < policy.order(new)
