"""What is measured of the scheduler's own work, and that the loop around it is what it says."""

from __future__ import annotations

import pytest

from agentrt.bench.overhead import Load, growth_exponent, measure_overhead

SMALL = Load(programs=12, seats=4, pages=120, steps=120, warm_up=400)


@pytest.mark.parametrize("policy", ["fcfs", "fixed-ttl=30", "fair"])
def test_the_loop_stays_saturated(policy):
    found = measure_overhead(policy, SMALL).to_json()
    assert 3 < found["running"] <= 4
    assert found["waiting"] > 1
    assert (found["pins"] > 0) == (policy != "fcfs")
    assert found["pages"] == 16 * 120
    assert found["turns_per_step"] > 0


def test_parts_add_up_to_the_whole():
    found = measure_overhead("fixed-ttl=30", SMALL)
    assert sum(found.steps) == pytest.approx(found.plan + found.commit + found.outside)
    assert len(found.steps) == len(found.reference) == 120
    figures = found.to_json()
    assert figures["disturbed"] >= 1
    assert figures["quiet_ms"] <= figures["ms_per_step"]


@pytest.mark.parametrize(("power", "scale"), [(0.0, 3.0), (1.0, 0.5), (2.0, 1.0)])
def test_growth_is_the_exponent(power, scale):
    sizes = [250, 500, 1000, 4000]
    assert growth_exponent(sizes, [scale * size**power for size in sizes]) == pytest.approx(power)
