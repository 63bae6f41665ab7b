"""The least that had to be prefilled, against searching every way to let go of tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.eviction import least_prefilled, working_set
from tests.bench.builders import play, small_workload
from tests.bench.test_metrics import turn_row


def row(program, start, end, prompt, reused, output=1):
    return turn_row(
        program,
        0,
        start,
        admitted=start,
        finished=end,
        prompt_tokens=prompt,
        ideal_tokens=prompt - reused,
        output_tokens=output,
        prefill_seconds=0.0,
        decode_seconds=end - start,
    )


def two_and_a_newcomer():
    return [
        row("a", 0, 1, 9, 0),
        row("b", 2, 3, 9, 0),
        row("c", 4, 5, 4, 0),
        row("a", 6, 7, 12, 10),
        row("b", 8, 9, 12, 10),
    ]


@pytest.mark.parametrize(
    ("pool", "least"),
    [
        (100, 9 + 9 + 4 + 2 + 2),  # room for all
        (25, 9 + 9 + 4 + 2 + 2),  # exactly: 10 + 10 held, and c's 5
        (23, 9 + 9 + 4 + 2 + 4),  # 2 tokens of b, whose return is the later one
        (13, 9 + 9 + 4 + 9 + 12),  # a gives 7 to b; b gives 5 to c, the rest to a
    ],
)
def test_whoever_is_back_last_gives_way(pool, least):
    assert least_prefilled(two_and_a_newcomer(), pool) == least


def test_working_set_is_the_most_that_was_held_at_once():
    assert working_set(two_and_a_newcomer()) == 25
    assert working_set([]) == 0


def test_there_is_no_bound_where_programs_share_what_they_prompt():
    assert least_prefilled([row("a", 0, 1, 9, 0), row("b", 2, 3, 9, 8)], 100) is None


def exhaustive(order, sizes, pool):
    """The least prefill for turns one after another, by trying every set of whole contexts kept."""
    best = None
    for choices in itertools.product((0, 1), repeat=len(order)):
        kept, prefilled = set(), 0
        for name, keeps in zip(order, choices, strict=True):
            others = sum(sizes[one] for one in kept if one != name)
            if others + sizes[name] > pool:
                break
            prefilled += 0 if name in kept else sizes[name]
            kept.discard(name)
            if keeps:
                kept.add(name)
        else:
            best = prefilled if best is None else min(best, prefilled)
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=8), st.integers(4, 14))
def test_no_way_to_keep_whole_contexts_prefills_less(order, pool):
    sizes = {"a": 4, "b": 4, "c": 4}
    seen: set[str] = set()
    rows = []
    for at, name in enumerate(order):
        # Prompts of 4 tokens that are all reused, and outputs that hold nothing.
        rows.append(row(name, at, at + 0.5, 4, 4 if name in seen else 0, output=0))
        seen.add(name)
    assert least_prefilled(rows, pool) <= exhaustive(order, sizes, pool)


@pytest.mark.parametrize("policy", ["fcfs", "fixed-ttl=5", "agentrt"])
def test_no_run_prefills_less_than_the_least_for_its_order(policy):
    programs = small_workload(6, 4).programs
    record = play([(one.arrival, one) for one in programs], policy=policy, pages=24)
    prefilled = sum(turn.prefilled_tokens for turn in record.turns)
    least = least_prefilled(record.turns, 24 * 16)
    assert least is not None
    assert sum(turn.ideal_tokens for turn in record.turns) <= least <= prefilled
