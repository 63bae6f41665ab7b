"""The device answers, and what the rows are compared with can be measured."""

from __future__ import annotations

from dataclasses import replace

from agentrt.bench.gpu_lab import REAL, measure_rates


def test_the_rates_are_those_of_a_gpu():
    rates = measure_rates(replace(REAL, copied=256 << 20, matrix=(2048, 2048, 2048)))
    assert rates.copy > 50e9
    assert rates.matrix > 1e12
