"""Random programs, pools, policies and hints: what the scheduler promises holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.scheduling import SchedulerConfig
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from tests.scheduling.driver import POLICIES, Driver, ProgramScript, TurnScript

numbers = st.sampled_from([None, -1e9, -1.0, 0.0, 0.3, 2.0, 1e9])
counts = st.sampled_from([None, -3, 0, 1, 10**9])
lies = st.builds(
    TurnHints,
    priority=st.integers(-3, 3),
    turn_deadline=numbers,
    program_deadline=numbers,
    output_tokens=counts,
    gap_seconds=numbers,
    remaining_turns=counts,
    keep_seconds=numbers,
    parent=st.sampled_from([None, "main", "side", "nobody"]),
    agent=st.sampled_from([None, "coder", ""]),
)
events = st.lists(
    st.sampled_from(["started", "ended", "killed", "blocked", "throttled", "frozen"]), max_size=3
).map(tuple)
turn_scripts = st.builds(
    TurnScript,
    new=st.integers(1, 14),
    output=st.integers(1, 8),
    gap=st.sampled_from([0.0, 0.01, 0.4, 3.0]),
    tool=st.sampled_from([None, "bash", "edit"]),
    last=st.sampled_from([False, False, False, True]),
    cancel_after=st.sampled_from([None, None, None, 0, 2]),
    stop_after=st.sampled_from([None, None, 1, 3]),
    rewind=st.sampled_from([0, 0, 3, 30]),
    context=st.sampled_from(["main", "main", "side"]),
    beside=st.sampled_from([False, False, False, True]),
    hints=st.one_of(st.just(NO_HINTS), lies),
    events=events,
)
program_scripts = st.builds(
    ProgramScript,
    arrival=st.floats(0, 4).map(lambda t: round(t, 2)),
    turns=st.lists(turn_scripts, min_size=1, max_size=4),
    prefix=st.sampled_from([0, 0, 9]),
    ends=st.booleans(),
    tenant=st.sampled_from(["default", "large"]),
    crash_after=st.sampled_from([None, None, None, 3, 20]),
)
configs = st.builds(
    SchedulerConfig,
    token_budget=st.sampled_from([5, 16, 64]),
    max_seqs=st.integers(1, 4),
    max_wait=st.sampled_from([0.0, 0.5, 2.0, 1e6]),
    reserve=st.sampled_from(["prompt", "output"]),
    pin_share=st.sampled_from([0.0, 0.5, 1.0]),
    newcomer_share=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
)
hosts = st.sampled_from([None, None, 2, 8, 40])
lags = st.lists(st.integers(0, 30), min_size=1, max_size=4)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(
    programs=st.lists(program_scripts, min_size=1, max_size=6),
    pool=st.integers(6, 24),
    config=configs,
    host=hosts,
    lags=lags,
    drafting=st.booleans(),
    overlap=st.booleans(),
)
def test_every_turn_ends_once_and_nothing_leaks(
    policy, programs, pool, config, host, lags, drafting, overlap
):
    driver = Driver(
        policy,
        programs,
        pool=pool,
        config=config,
        host=host,
        lags=lags,
        drafting=drafting,
        overlap=overlap,
    )
    log = driver.run()
    assert driver.drafter is None or not driver.drafter.open
    submitted = set(driver._where)
    assert set(log.stats) == submitted
    for turn_id, stats in log.stats.items():
        program, index = driver._where[turn_id]
        if stats.reason == "length":
            assert stats.output_tokens == programs[program].turns[index].output
        assert stats.cached_tokens + stats.prefilled_tokens >= stats.prompt_tokens or (
            stats.reason == "cancelled"
        )
    counts = driver.scheduler.statistics()
    assert (counts.running, counts.waiting) == (0, 0)
    assert counts.turns_finished == len(log.stats)
    for script in range(len(programs)):
        driver.scheduler.end_program(str(script), driver.backend.now)
    driver.scheduler.check_integrity()
    assert driver.kv.available() == pool
    assert driver.host is None or driver.host.available() == host
    assert driver.scheduler.statistics().pins == 0


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    programs=st.lists(program_scripts, min_size=1, max_size=5),
    pool=st.integers(6, 24),
    host=hosts,
    lags=lags,
)
def test_same_input_gives_the_same_plans(policy, programs, pool, host, lags):
    first = Driver(policy, programs, pool=pool, host=host, lags=lags).run()
    second = Driver(policy, programs, pool=pool, host=host, lags=lags).run()
    assert first.plans == second.plans
    assert first.stats == second.stats


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=8, deadline=None)
@given(
    programs=st.lists(program_scripts, min_size=1, max_size=5),
    pool=st.integers(6, 24),
    config=configs,
    host=hosts,
    lags=lags,
)
def test_deciding_steps_early_changes_no_output(policy, programs, pool, config, host, lags):
    calm = [
        replace(p, turns=[replace(t, cancel_after=None, beside=False) for t in p.turns])
        for p in programs
    ]
    calm = [replace(p, crash_after=None) for p in calm]
    plain, early = (
        Driver(policy, calm, pool=pool, config=config, host=host, lags=lags, overlap=overlap)
        for overlap in (False, True)
    )
    assert plain.run().outputs == early.run().outputs
    reasons = {turn_id: stats.reason for turn_id, stats in plain.log.stats.items()}
    assert reasons == {turn_id: stats.reason for turn_id, stats in early.log.stats.items()}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=6, deadline=None)
@given(
    programs=st.lists(program_scripts, min_size=1, max_size=5),
    pool=st.integers(8, 24),
    host=hosts,
    lags=lags,
)
def test_hints_and_policies_never_change_a_token(policy, programs, pool, host, lags):
    calm = [
        replace(p, turns=[replace(t, cancel_after=None, beside=False) for t in p.turns])
        for p in programs
    ]
    calm = [replace(p, crash_after=None) for p in calm]
    bare = [replace(p, turns=[_without_hints(t) for t in p.turns]) for p in calm]
    assert Driver(policy, calm, pool=pool, host=host, lags=lags).run().outputs == (
        Driver("fcfs", bare, pool=24).run().outputs
        if _fits(calm, pool)
        else Driver(policy, bare, pool=pool).run().outputs
    )


def _without_hints(turn: TurnScript) -> TurnScript:
    return replace(turn, tool=None, last=False, hints=NO_HINTS, events=())


def _fits(programs: list[ProgramScript], pool: int) -> bool:
    """Whether the largest program fits the smaller pool, so that both runs submit every turn."""
    return all(p.prefix + sum(t.new + t.output for t in p.turns) <= pool * 4 for p in programs)


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_are_decided_early_under_every_policy(policy):
    turns = [
        TurnScript(new=5, output=8, gap=0.01, stop_after=6 if i % 2 else None) for i in range(3)
    ]
    programs = [ProgramScript(arrival=0.0, turns=turns) for _ in range(2)]
    driver = Driver(policy, programs, pool=40, overlap=True)
    driver.run()
    steps = driver.scheduler.statistics().steps
    assert driver.followed > steps / 3
