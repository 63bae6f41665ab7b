"""The contention experiment in virtual time, on curves of the published shape made up here.

Three programs under one limit that they exceed together: a high-priority one with an early peak,
two equal low ones with two plateaus each. In one machine of the simulation the kernel kills the
largest when the limit is exceeded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrt.resources import control_events as ev
from agentrt.resources.controller import ControllerConfig
from tests.resources.plant import MIB, Curve, Plant, Tool

SPEED = 50
BASE = 100
"""MiB that every replay holds beside its curve."""
REACTION = 0.004
BANDWIDTH = 1.5 * (1 << 30)

HIGH_LEVELS = [(0, 185), (9, 160), (22, 172), (39, 285), (40, 243), (42, 320), (46, 250), (47, 192)]
HIGH_LEVELS += [(63, 200), (78, 208), (94, 216), (98, 216)]
LOW_LEVELS = [(0, 190), (15, 160), (31, 230), (32, 172), (40, 246), (41, 188), (51, 248), (52, 299)]
LOW_LEVELS += [(63, 207), (73, 273), (74, 306), (82, 208), (98, 217), (102, 217)]
BURSTY_LEVELS = [(0, 185), (60, 250), (115, 1461), (116, 1862), (117, 1165), (118, 447)]
BURSTY_LEVELS += [(122, 647), (123, 300), (180, 1027), (181, 1487), (182, 855), (184, 300)]
BURSTY_LEVELS += [(250, 1463), (252, 1076), (253, 400), (300, 262), (327, 262)]


def curve(levels: list[tuple[int, int]], speed: float = SPEED) -> Curve:
    return [(second / speed, (level + BASE) * MIB) for second, level in levels]


def tool(name: str, shape: Curve, priority: int, slack: float = 1.0) -> Tool:
    claim = int(slack * max(size for _, size in shape))
    return Tool(ev.CallSpec(name, claim, program=name, priority=priority), shape)


def run(
    limit: int, tools: list[Tool], *, governed: bool = True, reaction: float = REACTION
) -> Plant:
    config = ControllerConfig(memory=limit * MIB, horizon=2 * reaction + 0.002)
    plant = Plant(config, tools, BANDWIDTH, 0.002, reaction, governed)
    plant.run(60.0)
    return plant


def alone(shape: Curve) -> float:
    made = tool("x", shape, ev.HIGH)
    return run(100_000, [made], governed=False).durations()["x"]


def three(high: Curve, low: Curve, slack: float) -> list[Tool]:
    return [
        tool("high", high, ev.HIGH, slack),
        tool("low1", low, ev.LOW, slack),
        tool("low2", low, ev.LOW, slack),
    ]


def slowdowns(plant: Plant, shapes: dict[str, Curve]) -> dict[str, float]:
    took = plant.durations()
    return {name: took[name] / alone(shape) for name, shape in shapes.items()}


def test_ungoverned_one_of_them_dies() -> None:
    plant = run(1100, three(curve(HIGH_LEVELS), curve(LOW_LEVELS), 1.0), governed=False)
    assert [t.why for t in plant.tools].count("out of memory") == 1


@pytest.mark.parametrize(
    ("slack", "lows", "total"), [(1.0, 1.2, 0.65), (1.03, 1.2, 0.65), (1.06, 1.3, 0.67)]
)
@pytest.mark.parametrize("reaction", [0.002, 0.004])
def test_all_survive_and_hardly_wait(
    slack: float, lows: float, total: float, reaction: float
) -> None:
    """``slack``: by how much too large the claims are; the larger, the more is kept for nothing."""
    high, low = curve(HIGH_LEVELS), curve(LOW_LEVELS)
    plant = run(1100, three(high, low, slack), reaction=reaction)
    assert [t.why for t in plant.tools] == ["", "", ""]
    found = slowdowns(plant, {"high": high, "low1": low, "low2": low})
    assert found["high"] <= 1.05
    assert max(found["low1"], found["low2"]) <= lows
    serialised = alone(high) + alone(low)
    assert max(plant.durations().values()) / serialised <= total
    assert plant.controller.statistics().killed == 0


@pytest.mark.parametrize("slack", [1.0, 1.06])
def test_bursts_of_the_high_one_kill_nobody(slack: float) -> None:
    shapes = {
        "high": curve(BURSTY_LEVELS, 100),
        "low1": curve(HIGH_LEVELS, 100),
        "low2": curve(LOW_LEVELS, 100),
    }
    tools = [
        tool(name, shape, ev.HIGH if name == "high" else ev.LOW, slack)
        for name, shape in shapes.items()
    ]
    plant = run(2560, tools)
    assert [t.why for t in plant.tools] == ["", "", ""]
    found = slowdowns(plant, shapes)
    assert found["high"] <= 1.05
    assert max(found["low1"], found["low2"]) <= 1.5


def recorded(folder: Path, name: str, speed: float) -> Curve:
    points = json.loads((folder / f"{name}.json").read_text())["memory_curve"]
    return [(seconds / speed, size + BASE * MIB) for seconds, size in points]


@pytest.mark.requires_data
@pytest.mark.parametrize("slack", [1.0, 1.05])
def test_recorded_curves_at_1100(shared_data: Path, slack: float) -> None:
    folder = shared_data / "agentcgroup" / "contention"
    high, low = (recorded(folder, name, SPEED) for name in ("dask-11628", "github3.py-673"))
    plant = run(1100, three(high, low, slack))
    assert [t.why for t in plant.tools] == ["", "", ""]
    found = slowdowns(plant, {"high": high, "low1": low, "low2": low})
    assert found["high"] <= 1.05
    assert max(found["low1"], found["low2"]) <= 1.25


@pytest.mark.requires_data
def test_recorded_curves_at_2560(shared_data: Path) -> None:
    folder = shared_data / "agentcgroup" / "contention"
    names = {"high": "pre-commit-2524", "low1": "dask-11628", "low2": "faker-1520"}
    shapes = {role: recorded(folder, name, 100) for role, name in names.items()}
    tools = [
        tool(name, shape, ev.HIGH if name == "high" else ev.LOW) for name, shape in shapes.items()
    ]
    plant = run(2560, tools)
    assert [t.why for t in plant.tools] == ["", "", ""]
    found = slowdowns(plant, shapes)
    assert found["high"] <= 1.05
    assert max(found["low1"], found["low2"]) <= 1.5
