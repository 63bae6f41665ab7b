"""Workloads made from others keep what they promise to keep."""

from __future__ import annotations

import statistics

import pytest

from agentrt.bench.settings import BenchSettings
from agentrt.bench.transforms import redraw_gaps, scale_gaps, split_turns, with_told_turns
from agentrt.bench.workload import ideal_counts
from agentrt.errors import ConfigError
from agentrt.scheduling.hints import NO_HINTS
from agentrt.simulation.programs import ProgramRun
from tests.bench.builders import program, small_workload, turn, workload


def gaps_of(chosen):
    return [row.gap for one in chosen.programs for row in one.turns if row.gap is not None]


def played(**options):
    return BenchSettings(engine="simulated", **options).select(small_workload(count=40, turns=6))


def test_gaps_are_scaled_and_nothing_else():
    before, after = played(), played(gap_scale=5.0)
    assert gaps_of(after) == [5 * gap for gap in gaps_of(before)]
    assert scale_gaps(after, 0.2).facts().prompt_tokens == before.facts().prompt_tokens
    assert gaps_of(played(time_scale=2.0)) == gaps_of(played(gap_scale=2.0))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0])
def test_redrawn_gaps_have_the_same_mean_and_the_spread_asked_for(cv):
    before, after = gaps_of(played()), gaps_of(played(gap_cv=cv))
    assert statistics.mean(after) == pytest.approx(statistics.mean(before))
    assert statistics.pstdev(after) / statistics.mean(after) == pytest.approx(cv, abs=0.15)
    assert after == gaps_of(played(gap_cv=cv))
    assert gaps_of(redraw_gaps(played(), 1.0, seed=7)) != gaps_of(played(gap_cv=1.0))


def test_split_turns_keep_the_tokens_and_extend_one_another():
    before, after = played(), played(turn_factor=2)
    for one, other in zip(before.programs, after.programs, strict=True):
        assert len(other.turns) == 2 * len(one.turns)
        assert sum(ideal_counts(other)) == sum(ideal_counts(one))
        assert sum(row.output_tokens for row in other.turns) == sum(
            row.output_tokens for row in one.turns
        )
        assert other.turns[-1].prompt_tokens + other.turns[-1].output_tokens == (
            one.turns[-1].prompt_tokens + one.turns[-1].output_tokens
        )
        held = 0
        for row in other.turns:
            assert row.reused_tokens == held
            held = row.prompt_tokens + row.output_tokens
    assert sum(gaps_of(after)) == pytest.approx(2 * sum(gaps_of(before)))


def test_a_turn_of_one_token_is_not_split():
    one = workload(program("p", turn(5, 1, gap=1.0), turn(20, 9, reused=6)))
    parts = split_turns(one, 3).programs[0].turns
    assert [(row.prompt_tokens, row.output_tokens) for row in parts] == [
        (5, 1), (10, 3), (18, 3), (26, 3),
    ]  # fmt: skip
    assert [row.gap for row in parts] == [1.0, 0.0, 0.0, None]


def test_deadlines_are_multiples_of_the_time_alone():
    plain, due = played(), played(deadline=1.5)
    assert all(row.deadline is None for row in plain.programs)
    assert due.programs[3].deadline > 0
    assert played(deadline=3.0).programs[3].deadline == pytest.approx(2 * due.programs[3].deadline)


def test_programs_tell_how_many_turns_they_have_left():
    rows = [turn(10 + 11 * at, 1, gap=1.0, reused=11 * at) for at in range(3)]
    told = with_told_turns(workload(program("p", *rows)))
    run = ProgramRun(told.programs[0], arrival=0.0)
    said = []
    for _ in range(3):
        said.append((run.hints.remaining_turns, run.is_last))
        run.next_turns(0.0)
    assert said == [(2, False), (1, False), (0, True)]
    assert ProgramRun(workload(program("q", turn(9, 1))).programs[0], 0.0).hints == NO_HINTS
    assert all(row.tells_turns for row in played(tell_turns=True).programs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gap_scale": -1.0},
        {"gap_cv": -0.5},
        {"turn_factor": 0},
        {"deadline": 0.0},
        {"host_tokens": -1},
        {"weights": {"a": 0.0}},
        {"engine": "live", "host_tokens": 16},
        {"engine": "live", "weights": {"a": 1.0}},
        {"engine": "live", "deadline": 1.5},
        {"engine": "live", "tell_turns": True},
    ],
)
def test_senseless_changes_are_refused(wrong):
    with pytest.raises(ConfigError, match="--"):
        BenchSettings(**({"engine": "simulated"} | wrong))
