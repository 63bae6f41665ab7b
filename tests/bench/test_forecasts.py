"""Scores of forecasts: exact on programs made up for it, calibrated on recorded ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrt.bench.forecasts import KEYINGS, Calibration, evaluate_gaps, evaluate_steps
from agentrt.bench.parse import read_workload
from agentrt.bench.workload import Program, Tool, Turn, Workload
from agentrt.scheduling.gaps import GapDistribution, Lomax


def made_up(programs: int = 60) -> Workload:
    tools = [Tool("read"), Tool("bash", "test")] * 5
    turns = tuple(
        Turn("main", 100 * number, 0, 10, gap=0.1 if tool.name == "read" else 8.0, tools=(tool,))
        for number, tool in enumerate(tools, start=1)
    )
    return Workload("made-up", "", tuple(Program(f"p{each}", turns) for each in range(programs)))


def test_a_quantile_that_is_never_exceeded_costs_what_it_is_too_high() -> None:
    scores = Calibration()
    scores.add(GapDistribution([([2.0], 0.999)], Lomax(), 0.001), 1.0)
    assert scores.figures() == {
        "gaps": 1, "p50": 1.0, "p90": 1.0, "pinball": pytest.approx((0.5 + 0.1) / 2),
    }  # fmt: skip


def test_a_finer_key_tells_quick_tools_from_slow_ones() -> None:
    table = evaluate_gaps(made_up(), seeds=1)
    assert list(table) == list(KEYINGS)
    assert table["tool"]["at once"]["pinball"] < table["all"]["at once"]["pinball"] / 2
    assert table["tool"]["at once"]["p90"] > 0.9


def test_steps_that_alternate_are_known() -> None:
    scores = evaluate_steps(made_up(), seeds=2)
    assert scores["scored"] == pytest.approx(30 * 10 + 0, abs=10)
    assert scores["next_step_accuracy"] > 0.8
    assert scores["turns_left_error"] < scores["turns_left_error_cold"]


@pytest.mark.requires_data
def test_recorded_programs(shared_data: Path) -> None:
    workload = read_workload(shared_data / "agentcgroup" / "glm.jsonl").select("main", limit=55)
    gaps = evaluate_gaps(workload, seeds=1)
    fine, coarse = gaps["tool:kind, program"]["at once"], gaps["all"]["at once"]
    assert fine["p90"] == pytest.approx(0.9, abs=0.03)
    assert fine["p50"] == pytest.approx(0.5, abs=0.07)
    assert fine["pinball"] < 0.75 * coarse["pinball"]
    steps = evaluate_steps(workload, seeds=1, kinds=False)
    assert steps["next_step_accuracy"] > 0.5
    assert steps["kept_accuracy"] > 0.75
    assert steps["continuation_accuracy"] > 0.99
