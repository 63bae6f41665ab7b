"""Policies by name and their formulas, against hand-worked values."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest

from agentrt.errors import ConfigError
from agentrt.scheduling import OnlinePrefillCost, make_policy, policy_names, registry
from agentrt.scheduling.continuum import (
    ContinuumRetention,
    GapHistory,
    MemoryfulnessEstimate,
    best_ttl,
    cold_start_ttl,
)
from agentrt.scheduling.policy import KeepNothing, Policy, by_arrival, lru_score


class Turn:
    """A turn as a policy sees it."""

    def __init__(self, tool: str | None = "bash", length: int = 100) -> None:
        self.program_id, self.context, self.tool, self.length = "p", "main", tool, length
        self.submitted, self.sequence, self.preemptions, self.pinned = 1.0, 1, 0, False
        self.program_arrival, self.program_turns = 0.0, 0


class TestNames:
    def test_all_are_made_by_their_name(self):
        for spec in ("fcfs", "program-fcfs", "fixed-ttl=2.5", "continuum"):
            assert make_policy(spec).name == spec

    @pytest.mark.parametrize("spec", ["lifo", "", "fixed-ttl", "fixed-ttl=-1", "fixed-ttl=soon"])
    def test_wrong_ones_name_the_remedy(self, spec):
        with pytest.raises(ConfigError, match=r"Choose one of|fixed-ttl=30"):
            make_policy(spec)

    def test_an_argument_too_many_is_refused(self):
        with pytest.raises(ConfigError, match="takes no argument"):
            make_policy("fcfs=3")

    def test_plug_ins_are_found_by_entry_point(self, monkeypatch):
        point = EntryPoint("mine", "tests.scheduling.test_policies:plugin", "agentrt.policies")
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        assert "mine" in policy_names()
        assert make_policy("mine=7").name == "mine 7"


def plugin(argument: str | None, prefill_seconds: object) -> Policy:
    return Policy(f"mine {argument}", by_arrival, KeepNothing(lru_score))


class TestContinuumFormula:
    def test_cold_start(self):
        assert cold_start_ttl(math.e) == pytest.approx(1.0)
        assert cold_start_ttl(1.0) == 0.0
        assert cold_start_ttl(0.5) == 0.0

    def test_best_ttl_takes_the_smallest_at_a_tie(self):
        assert best_ttl([0.5, 1.0, 1.0, 2.0], 4.0) == 1.0

    def test_best_ttl_is_zero_when_nothing_pays(self):
        assert best_ttl([0.5, 1.0, 1.0, 2.0], 1.0) == 0.0
        assert best_ttl([], 5.0) == 0.0

    def test_eta_of_a_fixed_turn_count_is_one(self):
        estimate = MemoryfulnessEstimate()
        assert estimate.value == 1.0
        for _ in range(3):
            estimate.add(7)
        assert estimate.value == pytest.approx(1.0)

    def test_eta_falls_when_lengths_vary(self):
        estimate = MemoryfulnessEstimate()
        for turns in (1, 2, 40):
            estimate.add(turns)
        assert estimate.value < 1.0

    def test_history_forgets_the_oldest(self):
        history = GapHistory(cap=3)
        for gap in (5.0, 1.0, 3.0, 2.0):
            history.add(gap)
        assert history.sorted == [1.0, 2.0, 3.0]


class TestContinuumRetention:
    def retention(self, seconds: float = math.e) -> ContinuumRetention:
        return ContinuumRetention(lambda tokens: seconds)

    def test_no_tool_no_pin(self):
        assert self.retention().turn_ended(Turn(tool=None), 0.0) == 0.0

    def test_cold_start_uses_reload_and_queueing_of_evicted_turns(self):
        retention = self.retention(1.0)
        assert retention.turn_ended(Turn(), 0.0) == 0.0
        retention.admitted(99.0, evicted=False)
        retention.admitted(math.e - 1, evicted=True)
        assert retention.turn_ended(Turn(), 0.0) == pytest.approx(1.0)

    def test_global_gaps_until_the_tool_has_enough_then_its_own(self):
        retention = self.retention(10.0)
        for _ in range(101):
            retention.returned("slow", 4.0)
        retention.returned(None, 1000.0)
        assert retention.turn_ended(Turn("new"), 0.0) == 4.0
        for _ in range(101):
            retention.returned("new", 0.25)
        assert retention.turn_ended(Turn("new"), 0.0) == 0.25
        assert retention.turn_ended(Turn("slow"), 0.0) == 4.0

    def test_eta_scales_the_queueing_term(self):
        retention = self.retention(1.0)
        for _ in range(101):
            retention.returned("bash", 3.0)
        retention.admitted(5.0, evicted=True)
        assert retention.turn_ended(Turn(), 0.0) == 3.0
        for turns in (1, 1, 1, 2, 60):
            retention.program_ended(turns)
        retention.program_ended(1)
        assert retention.turn_ended(Turn(), 0.0) in (0.0, 3.0)


class TestOnlinePrefillCost:
    def test_learns_from_prefill_steps_only(self):
        cost = OnlinePrefillCost(initial_seconds_per_token=0.5)
        assert cost(10) == 5.0
        cost.observe(prefilled=8, tokens=8, seconds=100.0)
        cost.observe(prefilled=20, tokens=100, seconds=100.0)
        assert cost(10) == 5.0
        cost.observe(prefilled=100, tokens=100, seconds=1.0)
        assert cost(10) == pytest.approx(0.1)
