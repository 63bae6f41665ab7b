"""What several seeds say together."""

from __future__ import annotations

import pytest

from agentrt.bench.intervals import interval, intervals, losses, oracle_distance


def test_the_interval_is_students():
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # s = 1.5811, t(4) = 2.776: 2.776 * 1.5811 / sqrt(5)
    assert (low, high) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)
    assert interval([3.0, 3.0]) == (3.0, 3.0)
    assert interval([3.0]) is None
    low, high = interval([float(number % 2) for number in range(100)])
    assert high - low == pytest.approx(2 * 1.96 * 0.50252 / 10, rel=1e-3)


def test_intervals_leave_out_what_is_missing():
    runs = {"fcfs": {"0": {"jct_mean": 1.0, "jct_p90": None}, "1": {"jct_mean": 3.0}}}
    found = intervals(runs)["fcfs"]
    assert list(found) == ["jct_mean"]
    assert found["jct_mean"][0] < 2.0 < found["jct_mean"][1]


def test_distances_are_ratios_to_each_oracle_that_ran():
    metrics = {
        "fcfs": {"jct_mean": 30.0, "prefilled_tokens": 900},
        "belady": {"jct_mean": 10.0, "prefilled_tokens": 300},
        "broken": {"jct_mean": None, "prefilled_tokens": 300},
    }
    found = oracle_distance(metrics)
    assert found["fcfs"] == {"belady": {"jct_mean": 3.0, "prefilled_tokens": 3.0}}
    assert found["belady"] == {"belady": {"jct_mean": 1.0, "prefilled_tokens": 1.0}}
    assert found["broken"] == {"belady": {"prefilled_tokens": 1.0}}
    assert oracle_distance({"fcfs": metrics["fcfs"]}) == {}


def test_only_a_loss_beyond_the_tolerance_is_reported():
    def runs(*values):
        return {str(seed): {"jct_mean": value} for seed, value in enumerate(values)}

    per_seed = {
        "fcfs": runs(100.0, 100.0),
        "near": runs(101.0, 100.0),
        "worse": runs(90.0, 130.0),
        "better": runs(50.0, 50.0),
    }
    assert losses(per_seed) == {
        "worse": {"ratio": pytest.approx(1.1), "seeds_worse": 1, "seeds": 2}
    }
    assert losses({"worse": per_seed["worse"]}) == {}
