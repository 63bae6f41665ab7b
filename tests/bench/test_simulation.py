"""The simulator against times worked out by hand, and its jumps against single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.compare import isolated_seconds
from agentrt.errors import InternalError
from agentrt.simulation.clock import VirtualClock
from agentrt.simulation.cost import CostModel
from tests.bench.builders import (
    CONTEXT,
    COST,
    PREFILL,
    STEP,
    play,
    program,
    small_workload,
    turn,
    workload,
)


def test_one_program_alone_takes_what_the_cost_model_says():
    alone = program("a", turn(40, 3, gap=0.5), turn(60, 2, reused=43))
    record = play([(1.0, alone)])

    first, second = record.turns
    # 40 tokens in chunks of 32 and 8; then two decodes whose contexts are 41 and 42 tokens.
    assert first.submitted == first.admitted == 1.0
    assert first.first_token == 1.0 + 2 * STEP + 40 * PREFILL
    assert first.finished == first.first_token + 2 * STEP + (41 + 42) * CONTEXT
    # 42 tokens were computed: two whole pages are found again, 28 of 60 tokens are new.
    assert second.submitted == first.finished + 0.5
    assert (second.cached_tokens, second.prefilled_tokens) == (32, 28)
    assert second.ideal_tokens == 17
    assert second.first_token == second.submitted + STEP + 28 * PREFILL
    assert second.finished == second.first_token + STEP + 61 * CONTEXT
    assert record.programs[0].finished == second.finished
    assert (record.tools[0].start, record.tools[0].end) == (first.finished, second.submitted)
    assert [row.first for row in record.turns] == [True, False]


def test_a_program_alone_takes_its_isolated_time():
    for one in small_workload(count=3).programs:
        record = play([(0.0, one)])
        assert record.programs[0].finished == isolated_seconds([one], COST)[one.program]


def test_a_turn_that_does_not_fit_waits_for_the_one_that_runs():
    # Each needs 3 pages of prompt and output; the pool has 4.
    pair = [(0.0, program("a", turn(40, 4))), (0.25, program("b", turn(40, 4)))]
    record = play(pair, pages=4)
    first, second = record.turns
    assert (first.program, second.program) == ("a", "b")
    assert second.submitted == 0.25
    assert second.admitted == first.finished
    assert second.queue_seconds == first.finished - 0.25
    assert second.finished - second.admitted == first.finished - first.admitted


def test_two_decodes_share_steps():
    pair = [(0.0, program("a", turn(8, 5))), (0.0, program("b", turn(8, 5)))]
    record = play(pair)
    a, b = record.turns
    prefill = STEP + 16 * PREFILL
    decodes = 4 * STEP + 2 * CONTEXT * (9 + 10 + 11 + 12)
    assert a.finished == b.finished == prefill + decodes


def test_an_arrival_cuts_a_stretch_of_decoding():
    # b arrives in the middle of a's decoding and joins at the next step boundary.
    pair = [(0.0, program("a", turn(8, 50))), (1.0, program("b", turn(8, 2)))]
    record = play(pair)
    late = next(row for row in record.turns if row.program == "b")
    assert late.submitted is not None
    assert late.admitted is not None
    assert 1.0 <= late.admitted < 1.0 + STEP + 60 * CONTEXT


def test_a_turn_that_can_never_fit_fails_its_program_only():
    pair = [(0.0, program("big", turn(4000, 4))), (0.0, program("a", turn(8, 2)))]
    record = play(pair, pages=8)
    outcomes = {row.program: row.outcome for row in record.programs}
    assert outcomes == {"big": "failed", "a": "finished"}
    assert "fit" in next(row.detail for row in record.programs if row.program == "big")


def test_pins_are_recorded_with_their_end():
    alone = program(
        "a", turn(40, 3, gap=0.5), turn(60, 2, gap=9.0, reused=43), turn(70, 2, reused=60)
    )
    record = play([(0.0, alone)], policy="fixed-ttl=2")
    assert [pin.outcome for pin in record.pins] == ["handed_off", "expired"]
    first, second = record.pins
    assert (first.start, first.end) == (record.turns[0].finished, record.turns[1].submitted)
    assert second.end == second.start + 2.0


def test_a_sub_agent_runs_inside_its_callers_gap():
    rows = (
        replace(turn(40, 2, gap=10.0), at=0.0, seconds=1.0),
        replace(turn(20, 2, context="side"), at=1.5, seconds=1.0),
        replace(turn(50, 2, reused=42), at=3.0, seconds=1.0),
    )
    both = workload(program("a", *rows)).select("all").programs[0]
    record = play([(0.0, both)])
    main, side, back = record.turns
    assert side.submitted == main.finished + 0.5
    assert back.submitted == side.finished + 0.5
    assert [row.first for row in record.turns] == [True, True, False]
    assert back.cached_tokens == 32


def test_stop_leaves_the_run_incomplete_and_accounts_for_what_arrived():
    from agentrt.bench.recorder import Recorder
    from agentrt.bench.records import RunRecord
    from agentrt.engine.kv import PageCache
    from agentrt.scheduling import Scheduler, make_policy
    from agentrt.simulation.run import Simulation

    polls = iter(range(100))
    policy = make_policy("fcfs")
    scheduler = Scheduler(PageCache(64, 16, policy.retention.score), policy)
    record = RunRecord("fcfs", 0, "simulated", 1024, "tiny")
    arrivals = [(0.0, program("a", turn(8, 50))), (1e6, program("later", turn(8, 2)))]
    simulation = Simulation(
        arrivals, scheduler, COST, Recorder(record), stop=lambda: next(polls) == 2, jump=False
    )
    assert simulation.run() is False
    assert [(row.program, row.outcome) for row in record.programs] == [("a", "cancelled")]


def test_the_clock_does_not_run_back():
    clock = VirtualClock(2.0)
    assert clock.advance(0.5) == clock() == 2.5
    with pytest.raises(InternalError):
        clock.advance_to(2.0)


gaps = st.integers(0, 64).map(lambda n: n / 16)


@st.composite
def programs(draw):
    made = []
    for number in range(draw(st.integers(1, 5))):
        held, rows = 0, []
        for _ in range(draw(st.integers(1, 4))):
            reused = draw(st.integers(0, held))
            prompt = reused + draw(st.integers(1 if reused == 0 else 0, 60))
            output = draw(st.integers(1, 40))
            rows.append(turn(prompt, output, gap=draw(gaps), reused=reused))
            held = prompt + output
        made.append((draw(gaps), program(f"p{number}", *rows)))
    return sorted(made, key=lambda pair: pair[0])


@settings(max_examples=150, deadline=None)
@given(
    arrivals=programs(),
    policy=st.sampled_from(["fcfs", "program-fcfs", "fixed-ttl=1", "fixed-ttl=4", "continuum"]),
    pages=st.integers(20, 60),
    max_wait=st.sampled_from([0.0, 0.5, 3.0, 600.0]),
    reserve=st.booleans(),
)
def test_jumping_over_decodes_changes_nothing(arrivals, policy, pages, max_wait, reserve):
    cost = CostModel(STEP, PREFILL, CONTEXT, token_budget=32, max_seqs=4, reserve_output=reserve)
    options = {"policy": policy, "pages": pages, "max_wait": max_wait, "cost": cost}
    jumped = play(arrivals, jump=True, **options)
    stepped = play(arrivals, jump=False, **options)
    assert jumped.turns == stepped.turns
    assert jumped.programs == stepped.programs
    assert jumped.tools == stepped.tools
    assert jumped.pins == stepped.pins


@settings(max_examples=60, deadline=None)
@given(arrivals=programs(), policy=st.sampled_from(["fcfs", "fixed-ttl=4", "continuum"]))
def test_the_times_of_a_turn_add_up(arrivals, policy):
    record = play(arrivals, policy=policy, pages=40)
    turns = sum(len(one.turns) for _, one in arrivals)
    failed = {row.program for row in record.programs if row.outcome == "failed"}
    assert len(record.turns) == turns or failed
    for row in record.turns:
        spent = row.queue_seconds + row.prefill_seconds + row.decode_seconds
        assert spent == pytest.approx(row.finished - row.submitted)
        assert row.cached_tokens + row.prefilled_tokens >= row.prompt_tokens - row.preemptions
        assert row.ideal_tokens <= row.prompt_tokens


def test_a_return_in_the_middle_of_a_step_keeps_its_pin():
    # b's prefill is one step of 0.625 s; a is back before its pin expires within that step.
    a = program("a", turn(16, 2, gap=0.375), turn(40, 2, reused=17))
    first_end = STEP + 16 * PREFILL + STEP + 17 * CONTEXT
    b = program("b", turn(32, 1))
    record = play([(0.0, a), (first_end + 1 / 128, b)], policy="fixed-ttl=0.5")
    back = next(row for row in record.turns if row.program == "a" and row.index == 1)
    assert back.submitted == first_end + 0.375
    assert back.admitted > first_end + 0.5
    assert [pin.outcome for pin in record.pins] == ["handed_off"]
