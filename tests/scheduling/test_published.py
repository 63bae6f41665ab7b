"""Formulas of published policies, against hand-worked values."""

from __future__ import annotations

import pytest

from agentrt.scheduling import Surroundings, make_policy
from agentrt.scheduling.policies.infercept import Interception, wastes
from agentrt.scheduling.policies.justitia import VirtualFinish, turn_cost
from agentrt.scheduling.policies.length_aware import short_first, short_prefill_first
from agentrt.scheduling.policies.past_future import OutputHistory, PeakAdmission, peak_tokens
from agentrt.scheduling.policies.plas import AttainedService
from agentrt.scheduling.policies.thunder import ProgramPauses
from tests.scheduling.views import FakeContext, FakePool, FakeProgram, FakeTurn, turn_of


class TestReturnFirst:
    def test_a_first_turn_ranks_behind_a_later_returning_one(self):
        order = make_policy("return-first").order
        first, later = turn_of("a", submitted=1.0), turn_of("b", submitted=9.0)
        later.program.turns_served = 3
        assert order(later) < order(first)


class TestPlas:
    """Bounds at 2.048 s, 8.192 s, 32.768 s, ...: a token takes a millisecond."""

    def service(self) -> AttainedService:
        return AttainedService(lambda tokens: tokens / 1000)

    def call(self, service: AttainedService, program: FakeProgram, at: float, seconds: float):
        turn = FakeTurn(FakeContext(program), submitted=at)
        service.submitted(turn, at)
        service.started(turn, at)
        service.progressed(turn, 1, 0, seconds, at + seconds)
        service.ended(turn, "stop", at + seconds)

    def test_calls_one_after_another_add_up(self):
        service, program = self.service(), FakeProgram()
        self.call(service, program, 0.0, 1.0)
        self.call(service, program, 5.0, 2.0)
        assert service.attained(program) == 3.0

    def test_calls_side_by_side_count_as_the_longest_chain(self):
        service, program = self.service(), FakeProgram()
        turns = [FakeTurn(FakeContext(program, name)) for name in "ab"]
        for turn, seconds in zip(turns, (3.0, 2.0), strict=True):
            service.submitted(turn, 0.0)
            service.progressed(turn, 1, 0, seconds, seconds)
        for turn in turns:
            service.ended(turn, "stop", 4.0)
        assert service.attained(program) == 3.0

    @pytest.mark.parametrize(("seconds", "level"), [(1.0, 0), (2.1, 1), (9.0, 2), (40.0, 3)])
    def test_what_a_program_attained_gives_its_next_call_a_queue(self, seconds, level):
        service, program = self.service(), FakeProgram()
        self.call(service, program, 0.0, seconds)
        turn = FakeTurn(FakeContext(program), submitted=50.0)
        service.submitted(turn, 50.0)
        assert service.level(turn) == level

    def test_a_used_up_quantum_sends_a_call_down_and_a_higher_one_takes_its_place(self):
        service, long, short = self.service(), turn_of("a"), turn_of("b")
        service.submitted(long, 0.0)
        service.submitted(short, 0.0)
        service.progressed(long, 1, 0, 2.0, 2.0)
        assert not service.preempts(short, long, 2.0)
        service.progressed(long, 1, 0, 0.1, 2.1)
        assert (service.level(long), service.level(short)) == (1, 0)
        assert service.preempts(short, long, 2.1)
        assert service.quantum(1) == pytest.approx(8.192 - 2.048)

    def test_a_call_that_starves_goes_to_the_top(self):
        service, program = self.service(), FakeProgram()
        self.call(service, program, 0.0, 10.0)
        turn = FakeTurn(FakeContext(program), submitted=20.0)
        service.submitted(turn, 20.0)
        service.tick(39.9)
        assert service.level(turn) == 2
        service.tick(40.0)
        assert service.level(turn) == 0


class TestInferCept:
    def test_wastes(self):
        waste = wastes(100, 300, 2.0, forward_seconds=1.0, swap_seconds=0.1)
        assert (waste.discard, waste.preserve, waste.swap) == (200.0, 200.0, 80.0)
        assert waste.least == "swap"

    def test_a_short_tool_is_waited_for_and_a_long_one_is_not(self):
        retention = Interception(lambda tokens: tokens / 100, None)
        turn = turn_of(prompt_tokens=100)
        retention.engine.opened(FakePool(running=[turn, turn_of("b", computed=300)]))
        assert retention.turn_ended(turn, 0.0) == pytest.approx(1.0 * 400 / 2 / 100)
        retention.returned("bash", 50.0)
        assert retention.turn_ended(turn, 0.0) == 0.0

    def test_an_answer_without_a_tool_call_is_not_waited_for(self):
        assert Interception(lambda tokens: 1.0, None).turn_ended(turn_of(tool=None), 0.0) == 0.0

    def test_one_swap_at_a_time_hides_behind_the_steps(self):
        tiering = Interception(lambda tokens: tokens / 100, lambda tokens: tokens / 10_000)
        tiering.returned("bash", 50.0)
        turn = turn_of(prompt_tokens=100)
        assert tiering.offload(turn, 0.0)
        assert tiering.turn_ended(turn, 0.0) == 0.0
        assert not tiering.offload(turn, 0.0)
        tiering.engine.progressed(turn, 0, 1, 0.02, 1.0)
        assert tiering.offload(turn, 1.0)


class TestThunder:
    def pauses(self, *turns: FakeTurn) -> ProgramPauses:
        pauses = ProgramPauses()
        for turn in turns:
            pauses.submitted(turn, 0.0)
        return pauses

    def test_programs_start_while_they_fit_and_wait_for_the_next_check_else(self):
        pool = FakePool(capacity=1000)
        small, large = turn_of("a", prompt_tokens=300), turn_of("b", prompt_tokens=700)
        pauses = self.pauses(large, small)
        assert pauses.verdict(small, pool, 0.0) == "start"  # 300 + 100, then 700 + 100 is too much
        assert pauses.verdict(large, pool, 0.0) == "skip"
        assert pauses.next_change(0.0) == 5.0
        pauses.ended(small, "stop", 1.0)
        pauses.program_ended(small.program, 1.0)
        assert pauses.verdict(large, pool, 6.0) == "start"

    def test_acting_programs_are_paused_before_reasoning_ones(self):
        pool = FakePool(capacity=1200)
        acting, busy = turn_of("a", prompt_tokens=500), turn_of("b", prompt_tokens=500)
        pauses = self.pauses(acting, busy)
        assert pauses.verdict(busy, pool, 0.0) == "start"
        pauses.ended(acting, "stop", 1.0)
        acting.state.length, acting.program.turns_served = 500, 1
        pool.capacity = 900
        pauses.verdict(busy, pool, 5.0)
        assert pauses.paused() == [acting.program]

    def test_a_reasoning_program_is_paused_when_its_turn_ends(self):
        pool = FakePool(capacity=700)
        turn = turn_of("a", prompt_tokens=500)
        pauses = self.pauses(turn)
        assert pauses.verdict(turn, pool, 0.0) == "start"
        pool.capacity = 400
        pauses.verdict(turn, pool, 5.0)
        assert not pauses.paused()
        pauses.ended(turn, "stop", 6.0)
        assert pauses.paused() == [turn.program]

    def test_it_is_resumed_by_force_in_the_end(self):
        pool, turn = FakePool(capacity=10), turn_of("a", prompt_tokens=500)
        pauses = self.pauses(turn)
        assert pauses.verdict(turn, pool, 1799.0) == "skip"
        assert pauses.verdict(turn, pool, 1804.0) == "start"


class TestPastFuture:
    def test_peak(self):
        assert peak_tokens([(10, 5), (10, 2)]) == 24
        assert peak_tokens([(10, 2), (10, 5)]) == 24
        assert peak_tokens([]) == 0

    def test_a_turn_waits_for_the_peak_to_fit(self):
        history = OutputHistory()
        admission = PeakAdmission(history)
        running = turn_of("a", prompt_tokens=10, max_output=5)
        turn = turn_of("b", prompt_tokens=10, max_output=2)
        assert admission.verdict(turn, FakePool(24, running=[running]), 0.0) == "start"
        assert admission.verdict(turn, FakePool(23, running=[running]), 0.0) == "wait"

    def test_what_is_left_is_drawn_from_longer_outputs(self):
        history = OutputHistory()
        for output in (3, 8):
            history.ended(turn_of(output=output), "stop", 0.0)
        history.ended(turn_of(output=40), "cancelled", 0.0)
        assert history.remaining(turn_of(output=5)) == 3
        assert history.remaining(turn_of(output=8)) == 42
        assert history.remaining(turn_of(output=5, max_output=6)) == 1


class TestJustitia:
    def test_cost(self):
        assert turn_cost(100, 10) == 1050

    def test_finish_is_virtual_arrival_and_the_types_mean_cost(self):
        shares, first = VirtualFinish(), turn_of("a", output=10)
        shares.submitted(first, 0.0)
        assert shares.finish(first.program) == 0.0
        shares.progressed(first, 100, 10, 1.0, 1.0)
        assert shares.time == 1050.0
        first.program.turns_served = 1
        shares.program_ended(first.program, 2.0)
        second, third = turn_of("b"), turn_of("c", output=2)
        shares.submitted(second, 3.0)
        shares.submitted(third, 3.0)
        assert shares.finish(second.program) == 2100.0
        shares.progressed(third, 100, 2, 1.0, 4.0)
        assert shares.time == 1050.0 + turn_cost(100, 2) / 2

    def test_the_least_finish_goes_first(self):
        shares, early, late = VirtualFinish(), turn_of("a", submitted=9.0), turn_of("b")
        shares.submitted(early, 0.0)
        shares.time = 5.0
        shares.submitted(late, 1.0)
        assert shares.order(early) < shares.order(late)


class TestLengthAware:
    def test_new_tokens_decide_and_then_arrival(self):
        returning = FakeTurn(FakeContext(length=9_900), prompt_tokens=10_000, submitted=2.0)
        first = turn_of("b", prompt_tokens=10_000, submitted=1.0)
        short = turn_of("c", prompt_tokens=256, submitted=3.0)
        assert sorted([first, short, returning], key=short_first) == [returning, short, first]

    def test_started_prefills_by_what_is_left(self):
        nearly = turn_of("a", prompt_tokens=10_000, computed=9_800, submitted=5.0)
        fresh = turn_of("b", prompt_tokens=300, submitted=1.0)
        assert short_prefill_first(nearly) < short_prefill_first(fresh)


def test_continuum_counts_a_reload_where_there_is_a_host_tier():
    around = Surroundings(prefill_seconds=lambda n: 10.0, reload_seconds=lambda n: 0.5)
    assert make_policy("continuum", around).retention.turn_ended(turn_of(), 0.0) == 0.0
    alone = Surroundings(prefill_seconds=lambda n: 10.0)
    assert make_policy("continuum", alone).retention.turn_ended(turn_of(), 0.0) > 2.0
