"""Arrivals: the published recipe, its determinism, and recorded times."""

from __future__ import annotations

import random

import pytest

from agentrt.bench.arrivals import draw_arrivals
from agentrt.errors import ConfigError
from tests.bench.builders import small_workload


def test_a_rate_follows_the_stated_recipe():
    programs = small_workload(count=6).programs
    source = random.Random(7)
    expected = list(programs)
    source.shuffle(expected)
    drawn = draw_arrivals(programs, 0.5, 7)
    assert [one.program for _, one in drawn] == [one.program for one in expected]
    total = 0.0
    for time, _ in drawn:
        total += source.expovariate(0.5)
        assert time == total


def test_a_seed_gives_the_same_arrivals_and_another_gives_others():
    programs = small_workload(count=6).programs
    assert draw_arrivals(programs, 0.5, 1) == draw_arrivals(programs, 0.5, 1)
    assert draw_arrivals(programs, 0.5, 1) != draw_arrivals(programs, 0.5, 2)


def test_without_a_rate_recorded_times_hold():
    programs = small_workload(count=3).programs
    found = draw_arrivals(tuple(reversed(programs)), None, seed=5, time_scale=2.0)
    assert [(time, one.program) for time, one in found] == [(0.0, "p0"), (0.5, "p1"), (1.0, "p2")]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_senseless_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="--rate"):
        draw_arrivals(small_workload().programs, rate, 0)
