"""Figures of a run: percentiles as numpy has them, each figure against records made by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.metrics import average, measure, percentile
from agentrt.bench.recorder import KVSampler
from agentrt.bench.records import (
    KVSample,
    PinRecord,
    ProgramRecord,
    RunRecord,
    ToolRecord,
    TurnRecord,
)
from agentrt.scheduling.plan import SchedulerStatistics

KEYS = {
    "jct_mean",
    "jct_p50",
    "jct_p90",
    "jct_p99",
    "makespan",
    "programs_per_hour",
    "ttft_first_p50",
    "ttft_first_p99",
    "ttft_return_p50",
    "ttft_return_p99",
    "longest_wait",
    "prefilled_tokens",
    "ideal_tokens",
    "pins",
}


def turn_row(program: str, index: int, start: float, **fields: object) -> TurnRecord:
    values: dict[str, object] = {
        "submitted": start,
        "admitted": start + 1,
        "first_token": start + 3,
        "finished": start + 7,
        "prompt_tokens": 100,
        "ideal_tokens": 40,
        "cached_tokens": 48,
        "prefilled_tokens": 52,
        "output_tokens": 10,
        "preemptions": 0,
        "queue_seconds": 1.0,
        "prefill_seconds": 2.0,
        "decode_seconds": 4.0,
        "reason": "length",
    } | fields
    return TurnRecord(program, "default", "main", index, index == 0, **values)


def hand_made() -> RunRecord:
    record = RunRecord("fcfs", 0, "simulated", 1000, "tiny")
    record.programs = [
        ProgramRecord("a", "default", 0.0, 17.0, "finished"),
        ProgramRecord("b", "default", 10.0, 17.0, "finished"),
        ProgramRecord("c", "default", 2.0, 2.0, "failed", "too large"),
    ]
    record.turns = [
        turn_row("a", 0, 0.0),
        turn_row("a", 1, 10.0, first_token=11.5, queue_seconds=0.5, prefill_seconds=1.0),
        turn_row("b", 0, 10.0, first_token=15.0, queue_seconds=3.0, prefill_seconds=2.0),
    ]
    record.tools = [ToolRecord("a", "main", "bash", 7.0, 10.0)]
    record.pins = [
        PinRecord("a", "main", 7.0, 10.0, 30.0, 96, "handed_off"),
        PinRecord("b", "main", 1.0, 3.0, 2.0, 96, "expired"),
    ]
    record.kv = [KVSample(0.0, 500, 0, 0, 500, 1, 0), KVSample(3.0, 200, 100, 0, 800, 1, 0)]
    record.kv.append(KVSample(4.0, 0, 0, 0, 1000, 0, 0))
    return record


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_percentiles_are_numpys(values, share):
    assert percentile(values, share) == pytest.approx(
        float(np.percentile(values, 100 * share)), rel=1e-9, abs=1e-6
    )


def test_a_percentile_of_nothing_is_none():
    assert percentile([], 0.5) is None


def test_every_figure_of_a_hand_made_run():
    figures = measure(hand_made(), {"a": 8.5, "b": 7.0})
    assert figures.keys() >= KEYS
    assert figures["programs"] == {"failed": 1, "finished": 2}
    assert (figures["jct_mean"], figures["jct_p50"]) == (12.0, 12.0)
    assert figures["jct_p90"] == pytest.approx(16.0)
    assert (figures["makespan"], figures["programs_per_hour"]) == (17.0, 2 * 3600 / 17.0)
    assert figures["ttft_first_p50"] == 4.0
    assert figures["ttft_return_p50"] == figures["ttft_return_p99"] == 1.5
    assert figures["longest_wait"] == 3.0
    assert (figures["prefilled_tokens"], figures["ideal_tokens"]) == (156, 120)
    assert figures["prefill_ratio"] == 1.3
    assert (figures["prefix_hit_tokens"], figures["prefix_hit_share"]) == (144, 0.8)
    assert figures["pins"] == {"handed_off": 1, "expired": 1, "broken": 0, "final": 0}
    assert figures["slowdown_mean"] == 1.5
    assert figures["kv"]["leased_mean"] == pytest.approx((0.5 * 3 + 0.2 * 1) / 4)
    assert (figures["kv"]["leased_max"], figures["kv"]["pinned_max"]) == (0.5, 0.1)


def test_the_wait_adds_up_to_the_completion_time():
    figures = measure(hand_made())
    assert sum(figures["wait_seconds"].values()) == pytest.approx(figures["jct_mean"])
    assert figures["wait_seconds"]["queue"] == 2.25
    assert figures["wait_seconds"]["tool"] == 1.5


def test_a_run_without_programs_has_every_figure():
    figures = measure(RunRecord("fcfs", 0, "simulated", 1000, "tiny"))
    assert figures.keys() >= KEYS
    assert figures["jct_mean"] is None
    assert figures["longest_wait"] == 0.0


def test_seeds_are_averaged():
    one, two = measure(hand_made()), measure(hand_made())
    two |= {"jct_mean": 20.0, "jct_p50": None, "pins": two["pins"] | {"broken": 3}}
    both = average([one, two])
    assert both["jct_mean"] == 16.0
    assert both["jct_p50"] == one["jct_p50"]
    assert both["pins"] == {"handed_off": 1, "expired": 1, "broken": 1.5, "final": 0}
    assert average([one]) == one


def statistics(leased: int) -> SchedulerStatistics:
    numbers = dict.fromkeys(SchedulerStatistics.__dataclass_fields__, 0)
    return SchedulerStatistics(**numbers | {"pages_leased": leased, "page_size": 16})


def test_samples_of_a_long_run_stay_few_and_even():
    samples: list[KVSample] = []
    sampler = KVSampler(samples, limit=100, interval=0.25)
    for step in range(100_000):
        now = step * 0.1
        if now >= sampler.due:
            sampler.add(now, statistics(step % 7))
    assert 50 <= len(samples) <= 100
    assert samples[0].time == 0.0
    spans = [b.time - a.time for a, b in pairwise(samples)]
    assert max(spans) <= 2.5 * min(spans)
    assert samples[-1].time > 9_000
