"""Evenness of service: counted by hand on small records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.metrics import measure
from agentrt.bench.records import ProgramRecord, RunRecord, TurnRecord
from agentrt.bench.service import jain_index, overtaken, share_errors, waiting


def row(submitted, admitted, finished=None, tenant="a", *, prefilled=0, output=0):
    done = finished if finished is not None else (admitted or submitted) + 1
    return TurnRecord(
        program=f"{tenant}{submitted}",
        tenant=tenant,
        context="main",
        index=0,
        first=True,
        submitted=submitted,
        admitted=admitted,
        first_token=done if admitted is not None else None,
        finished=done,
        prompt_tokens=1,
        ideal_tokens=1,
        cached_tokens=0,
        prefilled_tokens=prefilled,
        output_tokens=output,
        preemptions=0,
        queue_seconds=0.0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        reason="length",
    )


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50))
def test_jain_lies_between_one_and_its_least(values):
    assert 1 / len(values) - 1e-9 <= jain_index(values) <= 1 + 1e-9


def test_jain_of_known_values():
    assert jain_index([2.0, 2.0, 2.0]) == 1.0
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_aged_and_starved_turns_are_counted():
    turns = [row(0, 5), row(0, 11), row(0, 2000), row(0, None, 1900)]
    assert waiting(turns, 10.0) == {"aged_turns": 3, "starved_turns": 2, "overtaken_aged": 0}
    assert waiting(turns, "inf")["aged_turns"] == 0


@pytest.mark.parametrize(
    ("younger", "count"),
    [
        (row(1, 9), 0),  # before the old one had aged
        (row(1, 15), 1),
        (row(1, 20), 0),  # together with it
        (row(1, 25), 0),
        (row(0, 15), 0),  # as old as it
        (row(12, 13), 1),
    ],
)
def test_overtaking_counts_only_younger_turns_while_an_aged_one_waits(younger, count):
    old = row(0, 20)
    assert overtaken([old, younger], [old], 10.0) == count


def naive(turns, bound):
    aged = [turn for turn in turns if turn.admitted - turn.submitted > bound]
    return sum(
        any(
            old.submitted + bound < turn.admitted < old.admitted and old.submitted < turn.submitted
            for old in aged
        )
        for turn in turns
    )


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_overtaking_is_what_a_pairwise_comparison_finds(pairs):
    turns = [row(submitted, submitted + waited) for submitted, waited in pairs]
    assert waiting(turns, 10)["overtaken_aged"] == naive(turns, 10)


def saturated(share, seconds=120):
    """Two tenants, a turn a second each, always with one waiting; ``share`` of the work is a's."""
    turns = []
    for at in range(seconds):
        for tenant, part in (("a", share), ("b", 1 - share)):
            turns.append(row(at - 1 if at else 0, at, at + 1, tenant, prefilled=round(1000 * part)))
    waits = [row(0, seconds, seconds, tenant) for tenant in ("a", "b")]
    return [*turns, *waits]


def test_shares_are_compared_with_the_weights():
    exact = share_errors(saturated(0.75), {"a": 3.0, "b": 1.0})
    assert exact["a"] == {"max": pytest.approx(0.0), "mean": pytest.approx(0.0)}
    even = share_errors(saturated(0.5), {"a": 3.0, "b": 1.0})
    assert even["b"] == {"max": pytest.approx(0.25), "mean": pytest.approx(0.25)}


def test_without_saturation_there_is_no_share():
    assert share_errors(saturated(0.5, seconds=40), {"a": 1, "b": 1})["a"]["max"] is None
    only_a = [turn for turn in saturated(0.5) if turn.tenant == "a"]
    assert share_errors(only_a, {"a": 1, "b": 1})["a"] == {"max": None, "mean": None}


def test_an_output_token_is_worth_two_prefilled_ones():
    turns = [
        row(0, 0, 100, "a", prefilled=200),
        replace(row(0, 0, 100, "b", output=100), first_token=0.0),
    ]
    turns += [row(0, 100, 100, tenant) for tenant in ("a", "b")]
    assert share_errors(turns, {"a": 1, "b": 1})["a"]["mean"] == pytest.approx(0.0, abs=1e-9)


def test_figures_of_a_run_with_deadlines_and_times_alone():
    programs = [
        ProgramRecord("p", "a", 0.0, 10.0, "finished", deadline=10.0),
        ProgramRecord("q", "a", 0.0, 40.0, "finished", deadline=30.0),
        ProgramRecord("r", "a", 0.0, 5.0, "failed", deadline=30.0),
        ProgramRecord("s", "a", 0.0, 20.0, "finished"),
    ]
    record = RunRecord("fcfs", 0, "simulated", 100, "w", programs=programs)
    figures = measure(record, {"p": 10.0, "q": 10.0, "r": 10.0, "s": 10.0})
    assert figures["deadlines_met"] == pytest.approx(1 / 3)
    assert figures["slo"] == {
        "1.25": 0.25, "1.5": 0.25, "2": 0.5, "2.5": 0.5, "3": 0.5, "4": 0.75, "5": 0.75,
    }  # fmt: skip
    assert figures["slowdown_jain"] == pytest.approx(49 / 63)
    assert "share_error" not in figures
